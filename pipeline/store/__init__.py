"""The feature store: immutable HDF5 shards, addressed by everything that shaped them.

identity   what made a feature, and the digest of that
keys       16-byte sample keys as arrays: sorting, looking up
shard      one HDF5 file, written once
index      index.json, written last: the commit of a features folder
cache      the columns that every project and branch on this machine shares
features   the one class that heads and training read
"""
