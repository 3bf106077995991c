"""Split a task: give each row a target and a split. Train rows fit, validation rows choose, test rows report.

A split that comes with the data is used: folders named train, validation and test, or a column `split`. The split of
every other row depends only on its key (or its group) and the task's seed, so that new rows never move existing rows.
With `stratify` each class is cut at exact shares or counts; then new rows can move other rows of their class over a
cut, at most as many as were added. `by` can choose another column or the domains instead.

run         the stage: read rows and targets, assign splits, check the result
targets     rows of the manifests with their targets
names       rename classes, and compare names that look the same
separators  check the separator of a multilabel column
given       splits that the data give
assign      splits by hash or by domain, few-shot draws, limits per class
rare        classes without training or test rows
config      settings: `SplitConfig`
"""
