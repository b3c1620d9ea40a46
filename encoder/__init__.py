"""Torch blocks that both rooms are built of: packed histories and the causal transformer over them."""
