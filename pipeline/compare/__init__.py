"""Compare the methods of each task by paired tests.

run           the stage: test all pairs of a task
tested        the compared methods, with their test rows
significance  the paired bootstrap and McNemar's test, corrected by Holm's procedure
teachers      pairs of students and teachers
config        settings: `CompareConfig`
"""
