"""How frameworks spell DeepSpeech."""
