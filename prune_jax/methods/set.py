"""SET, sparse evolutionary training (Mocanu et al., 2018, arXiv:1707.04780): small weights close, random ones open."""

import jax

from prune_jax.methods import regrowth
from prune_jax.pruning import trees
from prune_jax.pruning.method import Method, Pruned, PruneInfo
from prune_jax.pruning.options import made_from, option, options


@options
class Options:
    """The options of SET."""

    frequency: int = option(100, "Steps between updates of the gates.", 1)
    fraction: float = option(0.3, "The share of a kernel's open weights that an update exchanges.", 0, 1)


@made_from(Options)
def create(options: Options) -> Method:
    """Keeps a network sparse from the start, and exchanges its smallest weights for random ones.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-3), pj.set(frequency=100), pj.constant(0.9))
    """

    def init(params, gates, plan):
        regrowth.check(plan)
        return {}

    def prune(info: PruneInfo) -> Pruned:
        def at_random(closed):
            keys = trees.split_key(jax.random.fold_in(info.key, 2), closed)
            return [jax.random.uniform(key, gate.shape) for key, gate in zip(keys, closed, strict=True)]

        return regrowth.move(info, regrowth.share_moved(options.fraction, info.step, None), at_random)

    return Method("set", every=options.frequency, regrows=True, resets_moments=True, init=init, prune=prune)
