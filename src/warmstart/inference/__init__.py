"""Searching for outputs and scoring given ones, one batch at a time, with one model or an ensemble."""
