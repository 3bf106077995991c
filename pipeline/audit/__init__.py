"""Audit a task: count its rows, and look for leaks between its splits and for labels that look wrong.

An audit only reports. It changes no row, and no stage chooses anything by it.

run         the stage: write `data/audits/<task>.json`
counts      rows per class, domain and split; distances between their distributions; excluded copies
neighbours  near duplicates across splits, and labels that the nearest neighbours contradict, by cached features
rows        the rows that are compared: those with usable features, or a sample of them
findings    near duplicates and contradicted labels as records, with keys and paths
config      settings: `AuditConfig`
"""
