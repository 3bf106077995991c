"""The stage `distill`: train a student on the outputs of teachers."""
