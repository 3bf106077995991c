"""The command line: `icecore …`."""
