"""The encoder-decoder Transformer, as Marian defines it."""
