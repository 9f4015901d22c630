"""Shipping: a model written in another framework's dialect, one array at a time."""
