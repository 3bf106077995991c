"""Fit heads on stored features: all heads, inputs, numbers of labels, draws and seeds of a run, each tap read once.

Held-out rows choose a parameter of a head (`search`) and its temperature (`calibrate`): the validation rows of the task
if there are many, otherwise cross-validation over training and validation rows (`validation`). Then the head is fitted
to all rows except the test rows (`refit`). Rows of the training and validation splits are predicted by a head that was
not fitted to them; test rows are predicted by the final head. Test rows choose nothing.

config      the settings of a run: `FitConfig`
setup       load task and features, check them, list the fits
checks      refuse tasks that no head can learn
folds       choose the held-out rows, and the rows of the final fit
inputs      read the features of a run into memory or in blocks
workers     compute the sums of streaming heads in threads or workers
single_fit  one fit: search, calibration, refit, predictions
outputs     write the heads and model.json
summary     one line per head and input
run         load, fit each head, save, summarise
"""
