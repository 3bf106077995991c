"""Paired tests between the methods of each task.

config    settings: `CompareConfig`
teachers  students and their teachers
run       all pairs of a task
"""
