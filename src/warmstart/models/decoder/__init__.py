"""The decoder-only Transformer: GPT-2, Llama and their relatives are one family with flags."""
