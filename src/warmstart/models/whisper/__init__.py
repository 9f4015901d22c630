"""Whisper: speech to text by an encoder of spectrograms and a decoder of tokens."""
