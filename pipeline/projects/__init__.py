"""A project in any folder: the files that `icecore init`, `add`, `demo` and `run` write, and the code it depends on.

data_summary   what a folder, a list or containers of images hold: columns, classes, splits
backbone       the settings of a backbone by its name, its weights file or its folder, and taps of its blocks
params_text    params.yaml as text, with comments
yaml_text      values as YAML text; entries inserted into a text of YAML, whose other lines stay as they are
entries        the entries that `icecore add` writes
changed_options  options of a second `icecore run` that params.yaml does not agree with
pipeline_text  dvc.yaml of a project: the stages of stages.yaml, which depend on installed code by digest
code           the digest of the installed code of each stage, in `.icecore/code.json`
skeleton       the files of a project, written where none of them is
stages.yaml    the dvc.yaml of this repository, by a link
demo.yaml      params.yaml of `icecore demo`
default.yaml   params.yaml of `icecore demo --full`, which is also that of a fresh checkout of this repository
"""
