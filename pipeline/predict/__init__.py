"""Predict new images by what a run learned: `icecore predict`.

inputs         what the command is given: files, folders, lists, archives, URLs
run            predict all of them, a few or many
few            a few: in this process
many           many: through the feature cache, so that a killed prediction goes on where it was
inventory      the list of many inputs, with their keys
row_source     a network up to some taps, and its rows of new images
exported       an exported model: its file in the place of a run
near           what `--near` needs
training_rows  the training rows of a run, and the nearest of them
output_table   predictions as columns
output_files   Parquet, CSV, JSON lines, and a table for the terminal
"""
