"""A model in use: what a search found, decoding prompts and conversations."""
