"""Predict new images with the model of a run: `icecore predict`.

run            predict all inputs: a few directly, many through the feature cache
inputs         the inputs: files, folders, lists, archives, URLs, standard input
few            predict a few inputs in this process
many           predict many inputs through the feature cache; a killed prediction can be resumed
inventory      list many inputs with their keys
cached_rows    compute features into the feature cache part by part
row_source     a network up to its taps, and the features of new images
exported       an exported model in place of a run
near           open the training rows for `--near`
training_rows  the training rows of a run, and the nearest training rows of new images
output_table   predictions as columns
output_files   write Parquet, CSV, JSON lines, or a table on the terminal
"""
