"""Export a trained model: a file from pixels to probabilities, its description, and a script that needs no icecore."""
