"""Backbones: a frozen network, its input, its nodes and the digest of its weights.

`ARCHITECTURES`: for each family, the function that builds an untrained `nn.Module` from the settings in backbone.json.

spec                  the content of backbone.json
serialization         read and write a backbone
nodes, hooks          list the nodes of a network; observe their values
aliases               other names of nodes
pooling, projection   from a node's value to the stored row
feature_extractor     a network and its taps as a module
penultimate           the classifier, and its input as a vector
replace_classifier    put a new classifier into a network; truncation ends the network there
reference_output      the probe: outputs for a fixed image, compared whenever a backbone is loaded
replay                logits from stored penultimate features
torchvision_models, timm_models, user_module, glyphs   the families; user_code traces the code of a user's network
"""

ARCHITECTURES = {
    "glyphs": "pipeline.backbones.glyphs:build",
    "headed": "pipeline.backbones.replace_classifier:build",
    "headless": "pipeline.backbones.replace_classifier:build_headless",
    "module": "pipeline.backbones.user_module:build",
    "timm": "pipeline.backbones.timm_models:build",
    "torchvision": "pipeline.backbones.torchvision_models:build",
}
