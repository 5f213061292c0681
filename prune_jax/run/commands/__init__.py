"""The commands that work on finished runs: evaluate, export, compress, decompress, compare."""
