"""Recordings to text: acoustic models, whole or in pieces, and what is heard with them."""
