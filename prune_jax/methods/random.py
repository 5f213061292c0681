"""Random pruning: the choice that every other method has to beat (Gale et al., 2019, arXiv:1902.09574)."""

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.method import Method, Pruned, PruneInfo
from prune_jax.pruning.options import made_from, options


@options
class Options:
    """Random has no options."""


@made_from(Options)
def create(options: Options) -> Method:
    """Closes open gates at random.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-4), pj.random(), pj.constant(0.9), scope="erk")
    """

    def prune(info: PruneInfo) -> Pruned:
        equal = gates_lib.zeros(info.gates)  # ties close at random
        return Pruned(info.plan.close(info.gates, equal, info.target, info.key))

    return Method("random", prune=prune)
