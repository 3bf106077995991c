"""Extraction: run a frozen backbone once over the data, and store several taps as shards in the feature cache.

run            the steps in their order: request, disk_check, compute, commit, logit_check
request        the settings, samples and cache entries of an extraction, and the plan of missing rows
plan           which rows of which taps are missing, cut into units (pure)
disk_check     refuse features that do not fit on the disk, and suggest dtypes and poolings that would
disk_forecast  the bytes of an extraction and the free bytes of the disk (pure)
throughput     measure rates on a sample, and estimate the remaining time
compute        compute all units, in this process or on a cluster
engine_setup   choose the engine, check its parity, and build it for the taps of a unit
units          decode, run and store units, with overlap
worker         what a process prepares once for all of its units
job_files      the files of a job, for workers in other processes
dask_tasks     the functions that Dask calls in a worker
dask_run       distribute units to several workers
timing         time spent in reading, the forward pass and writing
commit         write the folder of each tap: links to shards, the index, and the samples without features
logit_check    check stored rows by running the network's last layer on them
summary        the summary of an extraction
"""
