"""Sub-layers of a Llama-shaped model over one cache, and their linear layers at any precision."""
