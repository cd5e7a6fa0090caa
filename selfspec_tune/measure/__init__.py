"""Paired, interleaved measurement of decoding arms on rendered prompts."""
