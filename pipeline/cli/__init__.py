"""The command line: `icecore …`.

Each module has the commands under a heading of `icecore --help`; longer commands have a second module for their work.

main       the app: the headings with their commands, and the printing of errors
extract    Vectors of a folder: extract                               extract_folder.py
layers     Vectors of a folder: layers
project    A project: settings, check, plan, forecast, repro               reproduce.py
predict    A trained model: predict
results    Results: info, leaderboard, wrong                               info.py
export     A trained model: export
features   Stored features: `icecore features`
cache      Stored features: `icecore cache`
output     the option `--json`

The modules import slow libraries inside of the commands only, so that help is shown at once.
"""
