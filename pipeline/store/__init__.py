"""The feature store: immutable HDF5 shards, addressed by everything that shaped them.

identity      what made a feature, and the digest of that
key_arrays    16-byte sample keys as arrays: sorting, looking up
shard_format  what is in a shard: rows, blocks, checksums
shard_checks  where it lies in the file, and a refusal of everything else
shard_writer  one HDF5 file, written once
row_buffer    rows that come in batches, until all of a shard are there
shard_reader  the same file, open, and its rows
index         index.json, written last: the commit of a features folder
cache         the columns that every project and branch on this machine shares
use           which parts of them a running job holds
lock          one process at a time writes a folder of features
maintenance   what of them is damaged, how large they are, what may go
features      the one class that heads and training read
export        its rows as one file for others
"""
