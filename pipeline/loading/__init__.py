"""Loading: from a manifest to decoded batches of named arrays.

samples          the samples of a job: keys, and where their bytes are
decoders         decode in threads, or in processes
decoder_process  the code of a decoding process
batches          batches of a unit, read and decoded ahead
image_cache      decoded images of a training, in memory or in a mapped file
"""
