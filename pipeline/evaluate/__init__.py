"""Evaluate runs: metrics on test rows, with confidence intervals.

run         the stage: evaluate one run, write its numbers and tables
methods     the fits of a run by head, input and number of labels
bootstrap   confidence intervals of a metric
undecided   mark methods that held-out rows cannot tell apart
choice      choose a method by held-out rows
table       a row per method, and the row that is selected
breakdown   tables by class, group, level and confidence
plots       the CSV files for `dvc plots`
up_to_date  whether the numbers of a run follow from its present inputs
config      settings: `EvaluateConfig`
"""
