"""wav2vec 2.0: speech to characters by convolutions over samples and an encoder."""
