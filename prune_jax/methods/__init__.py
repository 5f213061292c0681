"""The registry of pruning methods. A new method is a new file here and one line of REGISTRY."""

import importlib

REGISTRY = {  # name: module with create(config) -> Method; imported on use, so that validation needs no jax
    "baseline": "prune_jax.methods.baseline",
    "magnitude": "prune_jax.methods.magnitude",
    "movement": "prune_jax.methods.movement",
    "spt": "prune_jax.methods.spt",
    "sws": "prune_jax.methods.sws",
}
UNSCHEDULED = ("baseline", "sws")  # methods that close nothing while they train: no sparsity schedule applies


def create(config):
    """The Method (prune_jax.methods.base) that the resolved config names."""
    return importlib.import_module(REGISTRY[config.pruning.method]).create(config)
