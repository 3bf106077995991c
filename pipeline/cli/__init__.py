"""The command line: `icecore …`.

A heading of `icecore --help` is a module of commands; what a command does or prints lies in the module of its name.

main       the app: the headings and their commands, and how errors are printed
extract    Vectors of a folder: extract                               extract_folder.py
layers     Vectors of a folder: layers
project    A project: settings, check, plan, forecast, repro               reproduce.py
predict    A trained model: predict
results    Results: info, leaderboard, wrong                               info.py
export     A trained model: export
features   Stored features: `icecore features`
cache      Stored features: `icecore cache`
output     `--json`

Modules of commands import nothing slow: help is shown at once.
"""
