"""Coqui STT's own commands and flags, translated into a native configuration: ``warmstart stt …``."""

COMMANDS = {
    "train": "train a model, test it and export it",
    "evaluate": "word and character error rates of a checkpoint",
    "export": "export a checkpoint for TensorFlow Lite or onnxruntime",
    "transcribe": "write transcripts to .tlog files. Recordings are cut at silence.",
    "lm-optimize": "choose the weights of a scorer",
    "config": "print what the flags of train stand for. The native configuration, as YAML.",
}
ALIASES = {"lm_optimizer": "lm-optimize", "lm_optimize": "lm-optimize", "training_graph_inference": "evaluate"}
"""Names of upstream's modules that are spelt otherwise here."""
