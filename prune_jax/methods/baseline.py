"""No pruning: the dense network that the others are measured against."""

from prune_jax.pruning.method import Method
from prune_jax.pruning.options import made_from, options


@options
class Options:
    """The baseline has no options."""


@made_from(Options)
def create(options: Options) -> Method:
    """Closes nothing."""
    return Method("baseline", scheduled=False)
