"""Where bytes are: paths and URLs."""
