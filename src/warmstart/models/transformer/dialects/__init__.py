"""How each framework spells the encoder-decoder Transformer: one file for each, listed in ``family.py``."""
