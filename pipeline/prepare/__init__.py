"""Prepare a data set: list its samples, check that each image can be read, and write its manifest.

run              the stage: list, check, write the manifest
roots            the kind of each root (a folder of images, a list, archives), and files that are no samples
find             the samples of a data set, listed without opening an image
image_folder     class and split from folder names, and which files to skip
file_list        samples of a list: a CSV or Parquet file of paths and labels
delimited_text   rows of a CSV list: encoding, delimiter, column types
webdataset       samples of tar archives in the WebDataset convention
archive_members  labels in the .json and .cls members of an archive
parquet_images   samples of Parquet files with a column of image bytes
labels           label columns of a table: names, types, Hugging Face class names; domain and split of a sample
label_types      types of label columns that only their values show
samples_table    the SQLite table of the samples: list, check, mark duplicates and conflicts, refuse too many
check_images     open every image, in several processes
known_files      keys of files that did not change since they were opened
write_manifest   the manifest, the table of files and the list of excluded files
notes            sentences about labels that may be mistakes
outline          the manifest's rows and labels before any image is opened
config           settings: `PrepareConfig`
"""
