"""The feature store: immutable HDF5 shards, addressed by the settings that determine their values.

identity      the settings that determine a feature's values, and their digest
key_arrays    16-byte sample keys as arrays: sorting, lookup
shard_format  the layout of a shard: rows, blocks, checksums
shard_checks  validation of an HDF5 file as a shard, and the offsets of its data
shard_writer  writes a shard
row_buffer    rows of an unfinished shard, in a temporary file
shard_reader  reads rows of a shard
index         index.json, written last: the commit of a features folder
cache         the cache entries that all projects and branches on a machine share
lock          a lock so that a single process writes a features folder
use           locks on parts of the cache that a running job uses
maintenance   find damage, measure sizes, prune
links         links from a features folder to the cache
location      the folder of the cache
features      the class through which heads and training read features
files_table   path and labels of each row
export        features as a single file for other programs
"""
