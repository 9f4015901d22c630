"""Coqui STT's thirteen augmentations: the same names, keys, defaults and ranges over the training."""
