"""Encoder-only Transformers: BERT and its descendants."""
