"""Coqui STT's own commands and flags, translated into a native configuration: ``warmstart stt …``."""
