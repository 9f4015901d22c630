"""How each framework spells T5: one file for each, listed in ``family.py``."""
