"""Weights in fewer bits: which tensors, in which encoding, and how each is rounded."""
