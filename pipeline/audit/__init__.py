"""Audit a task: what its splits hold, what leaks between them, and which labels look wrong.

Nothing is changed and nothing is chosen by what is found; the report shows it.

counts      rows of each class, domain and split; distances between their distributions; copies that were left out
neighbours  near duplicates across splits, and labels that the nearest rows contradict, by cached features
run         all of it, as `data/audits/<task>.json`
"""
