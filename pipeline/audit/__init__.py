"""Audit a task: count its rows, and look for leaks between its splits and for labels that look wrong.

An audit only reports. It changes no row, and no stage chooses anything by it.

run         the stage: write `data/audits/<task>.json`
counts      rows per class, domain and split; distances between their distributions; excluded copies
neighbours  near duplicates across splits, and labels that the nearest neighbours contradict, by cached features
config      settings: `AuditConfig`
"""
