"""Projects in any folder: the files that `icecore init`, `add`, `demo` and `run` write, and the code they depend on.

skeleton         write the files of a new project
data_summary     summarise a data set: columns, classes, splits
backbone         settings of a backbone by its name, weights file or folder; taps of its blocks
params_text      params.yaml of a new project, with comments
entries          the entries that `icecore add` writes
yaml_text        values as YAML text; insert entries into YAML text without changing other lines
changed_options  a second `icecore run`: the same images, and options that differ from params.yaml
pipeline_text    dvc.yaml of a project, with digests of the installed code
code             digests of the installed code of each stage, in `.icecore/code.json`
stages.yaml      a link to the dvc.yaml of this repository
demo.yaml        params.yaml of `icecore demo`
default.yaml     params.yaml of `icecore demo --full`, the same as in a fresh checkout of this repository
"""
