"""Freeze a backbone: where weights come from, each source with settings of its own. The work is done in run.py.

Whatever the source, `input` changes single settings of its preprocessing, and weights in a file are pinned by a digest:
another file is another backbone.
"""
