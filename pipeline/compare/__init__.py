"""Compare the methods of each task by paired tests.

run       the stage: test all pairs of a task, correct the p-values
teachers  pairs of students and teachers
config    settings: `CompareConfig`
"""
