"""Out-of-core estimators: fitted by passes over blocks of rows that need not fit into memory.

rows, chunks                    row sources, a block at a time; blocks for threads and workers
moments, accumulate             sums over rows, the moments computed from them, and the pass that sums
targets                         validation of targets, as in scikit-learn
scaler, pca                     transformers before an estimator
ridge, ridge_path               ridge regression, and its penalties by cross-validation
lda, centroid                   class means
logistic, logistic_loss, lbfgs  logistic regression, its loss, its optimiser
knn, exact_search               nearest neighbours
row_space                       fewer rows than features
predict                         predictions, block by block
"""
