"""Fit heads on stored features: all heads, inputs, numbers of labels, draws and seeds of a run, each tap read once.

Rows that are held out choose a parameter of a head (`search`) and its temperature (`calibrate`): the validation rows
of the task where they are many, else each fold of training and validation rows in its turn (`validation`). Then the
head is fitted to all rows that are not test rows (`refit`). Predictions of training and validation rows are always of a
head that was not fitted to them, those of test rows of the last one. Test rows choose nothing.

config      the settings of a run: `FitConfig`
setup       load task and features, check them, list the fits
checks      tasks that no head can learn
folds       the rows that are held out, and those that the last head learns from
inputs      the features of a run, in memory or in blocks
workers     who makes the sums of streaming heads
single_fit  one fit: search, calibration, refit, predictions
outputs     the heads and model.json on disk
summary     a line per head and input
run         load, fit each head, save, summarise
"""
