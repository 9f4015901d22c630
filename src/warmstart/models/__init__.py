"""Model families: one folder each, with the same file names (config, parameters, dialects, module)."""
