"""Prepare a data set: list its samples, check that each image can be read, and write its manifest.

run              the stage: list, check, remove duplicates and conflicts, write the manifest
roots            the kind of each root: a folder of images, a list, tar archives or Parquet files
find             the samples of a data set, listed without opening an image
image_folder     class and split from folder names, and which files to skip
file_list        samples of a list: a CSV or Parquet file of paths and labels
delimited_text   rows of a CSV list: encoding, delimiter, column types
webdataset       samples of tar archives in the WebDataset convention
archive_members  labels in the .json and .cls members of an archive
parquet_images   samples of Parquet files with a column of image bytes
places           domain and split of a sample, where folders and columns both name them
labels           label columns of a table: names, types, Hugging Face class names
label_types      types of label columns that only their values show
companions       files of other tools beside images and archives, which are no samples
check_images     open every image, in several processes
known_files      keys of files that did not change since they were opened
notes            sentences about labels that may be mistakes
outline          the manifest's rows and labels before any image is opened
config           settings: `PrepareConfig`
"""
