"""Many experiments side by side: `prune-jax sweep`. Flags to runs, runs to processes, processes to a view."""
