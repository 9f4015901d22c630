"""Other systems' own commands and files, translated into ours."""
