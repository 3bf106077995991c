"""Estimators that are fitted out of core: a pass over the rows at a time."""
