"""wav2vec2-BERT: speech to characters by a Conformer over spectrograms."""
