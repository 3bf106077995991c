"""The stage `evaluate`: metrics with intervals of every run."""
