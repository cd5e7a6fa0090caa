"""Sub-layers as a plan describes them, over one cache, and their linear layers at any precision."""
