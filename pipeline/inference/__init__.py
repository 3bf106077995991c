"""Use a backbone or a trained model on new images: the Python API that `icecore.py` exports.

backbone          `Backbone`: load a model by name, folder or module, and embed images at any layer
module_in_memory  freeze a module in memory, and derive its spec
cached_embedding  embed many images through the feature cache
rows              run taps of a backbone on images in memory
row_cache         cache rows by the content of their images, in memory or in the feature cache
stored_images     the images of a folder, a list, archives, Parquet or a URL as bytes
transforms        transforms of torchvision and timm as settings of the preprocessing
node_table        the table of a network's layers
frozen_features   `FrozenFeatures`: a scikit-learn transformer
evaluation        `evaluate`: the protocol of the stages `fit` and `evaluate`, for arrays
array_task        write arrays as a task and features on the disk
trained_model     `load`: a run's head with its backbone, or its network
fit_choice        choose the fit of a run that predicts
answers           predictions of a head or a network in the form of a task's targets
reporting         progress and messages of the Python API
"""
