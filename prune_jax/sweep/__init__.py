"""Many experiments side by side: `python -m prune_jax.sweep`. Flags to runs, runs to processes, processes to a view."""
