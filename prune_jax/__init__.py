"""Pruning and compression of neural networks in JAX."""
