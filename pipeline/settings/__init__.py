"""What params.yaml says: read, checked against the settings of each stage, and described."""
