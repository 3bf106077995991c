"""Split a task: which rows train, which choose, which report, and what is to be learned of them.

A split that the data have is used: folders named train, validation and test, a column `split`, the files of a hub.
Every other row's split is a function of its key (or its group) and the task's seed alone: rows that are added later
move no row that was there. With `stratify` every class is cut at exact shares or counts of its own; then rows that are
added can move rows of their class over the cuts, over each cut at most as many as were added. Another column, or the
domains, can say the split instead.

targets     the rows of the manifests, their targets as the kind of task has them
names       class names renamed, and names that look the same
separators  whether the texts of a multilabel task have another separator than the one that is set
given       the splits that a column of the data says
assign      a split for each row, few-shot draws, limits a class
rare        classes that lack training or test rows
run         all of it, and what is wrong with the outcome
"""
