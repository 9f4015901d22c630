"""T5 and what was made of it: T5 1.1, mT5, umT5, ByT5, Flan-T5."""
