"""How each framework spells DeepSpeech: one file for each, listed in ``family.py``."""
