"""From a manifest to decoded batches of named arrays."""
