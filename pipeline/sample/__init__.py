"""Sample data for the demo.

config  settings: `SampleConfig`
run     write digits and printed characters as PNG files
"""
