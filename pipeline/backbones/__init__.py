"""Backbones: a frozen network, the input it wants, its taps and the digest of its weights.

`ARCHITECTURES` names the families: a function from the settings in backbone.json to an untrained `nn.Module`.
"""

ARCHITECTURES = {
    "glyphs": "pipeline.backbones.glyphs:build",
    "headed": "pipeline.backbones.replace_classifier:build",
    "headless": "pipeline.backbones.replace_classifier:build_headless",
    "module": "pipeline.backbones.user_module:build",
    "timm": "pipeline.backbones.timm_models:build",
    "torchvision": "pipeline.backbones.torchvision_models:build",
}
