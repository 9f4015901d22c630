"""Movable models: a directory with weights, configuration, vocabularies and lineage."""
