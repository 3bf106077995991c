"""Loading: from a manifest to decoded batches of named arrays.

samples          the samples of a job: keys, and where their bytes are stored
decoders         decoding in threads, or in processes
decoder_process  the code that runs in a decoding process
batches          batches of samples, read and decoded ahead of the network
image_cache      decoded images for training, in memory or in a memory-mapped file
images           images in memory or from paths, for calls from Python
"""
