"""warmstart: start training from models that already exist."""

__version__ = "0.1.0"
