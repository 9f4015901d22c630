"""Tokens ↔ rows of an embedding: characters, SentencePiece, Marian's YAML.

``load_vocabulary`` opens any of them by content; ``fingerprint`` says whether two give rows the same meaning.
"""
