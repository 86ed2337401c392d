"""Lowerings: each takes a `Site`, refuses by `Refused` or gives the function that computes the node with PyTorch."""
