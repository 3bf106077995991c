"""Use a backbone or a trained model on new images: the Python API, which `icecore.py` names.

backbone          `Backbone`: from a model's name, a folder or a module to rows of any layer
module_in_memory  a module in memory as a frozen network with its spec
cached_embedding  features of many images through the feature cache
rows              run taps of a backbone over images in memory
row_cache         rows of images by their content, in memory or in the feature cache
stored_images     the images of a folder, a list, archives, Parquet or a URL as bytes
transforms        transforms of torchvision and timm as settings of the preprocessing
node_table        the table of a network's layers
frozen_features   `FrozenFeatures`: a transformer of scikit-learn
evaluation        `evaluate`: the protocol of `fit` and `evaluate` on arrays
array_task        arrays as a task and features on the disk
trained_model     `load`: a run's head with its backbone, or its network
fit_choice        which fit of a run predicts
answers           predictions of a head or a network in the form of a task's targets
reporting         progress and messages of the Python API
"""
