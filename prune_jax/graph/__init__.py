"""A JAX function read as a graph: which axes go together, who reads which kernel, costs, the shrunk function."""
