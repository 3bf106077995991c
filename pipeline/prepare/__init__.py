"""Prepare a data set: find its files, check that each can be read, and write its manifest.

roots            what kind of thing each root is: a folder of images, a list, tar archives, Parquet files
find             the files of a folder, unopened, and what their places say about them
file_list        the same of a list: a CSV or Parquet file of paths and labels
delimited_text   the lines of a CSV list: encoding, delimiter, types
labels           the label columns of a table: names, types, and class names of Hugging Face
webdataset       the same of tar archives in the WebDataset convention
archive_members  the labels in the .json and .cls of a sample in a tar archive
parquet_images   the same of Parquet files with a column of image bytes
companions       what other tools write beside images and archives, and is no sample
check_images     open them all, in processes
known_files      keys of files that are as they were when they were opened
notes            sentences about labels that may be mistakes
run              find duplicates and conflicts, write the manifest
"""
