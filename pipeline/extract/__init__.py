"""Extraction: a frozen backbone over the data once, several taps in one pass, to shards in the feature cache.

request        what is asked for, and the plan of what the cache lacks
plan           which rows of which taps are missing, cut into units (pure)
disk_check     whether the features fit on the disk, and which dtypes and poolings would; taps with very wide rows
disk_forecast  the bytes of that, against the free bytes (pure)
throughput     measured rates on a sample, and the time for the rest
engine_setup   the engine: chosen, through the gate, made for the taps of a unit
units          units: decode, run, store, overlapping
worker         what a process makes ready once for all of its units
job_files      a job on disk, for workers in other processes
dask_tasks     what Dask calls in a worker
dask_run       units handed out to several workers
timing         where the time went
compute        all units, here or on a cluster
commit         the folder of each tap: its shards, its index, and the samples without features
logit_check    stored rows, replayed through the network's own end
summary        what an extraction did, and what is said at the end
run            the steps in their order: request, disk_check, compute, commit, logit_check
"""
