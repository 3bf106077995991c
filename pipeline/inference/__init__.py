"""Use what is there: a backbone or a trained model, on images that a program or a person has now."""
