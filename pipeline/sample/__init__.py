"""The stage `sample`: demonstration data."""
