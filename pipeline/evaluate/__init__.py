"""Evaluation: metrics of every run on test rows, with intervals.

config             settings: `EvaluateConfig`
methods            the fits of a run by head, input and number of labels
bootstrap          intervals of a metric
undecided, choice  methods that held-out rows cannot tell apart, and the choice among them
breakdown          classes, groups, levels, confidence
run                all of a run
"""
