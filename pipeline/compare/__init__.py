"""The stage `compare`: paired tests between the methods of each task."""
