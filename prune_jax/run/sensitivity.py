"""What each part of a network is worth alone: it is closed to a few levels while all others stay as they are.

The picture that people look at before they choose a scope, as in Li et al. (arXiv:1608.08710, figure 2).
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.models import units
from prune_jax.pruning import plan as plan_lib
from prune_jax.pruning import trees

LEVELS = (0.5, 0.8, 0.95)


def _parts(model, structure: str, names: Sequence[str]) -> Iterator[tuple[str, str, tuple]]:
    """(name, structure, groups) of each part that closes alone: a kernel, or a group of units."""
    if not units.chosen(model, structure):
        yield from ((name, structure, ()) for name in names)
        return
    for word in structure.split("+"):
        spelled = units.spelled(model, word)
        yield from ((group.name, spelled, (group,)) for group in units.chosen(model, word))


def measure(
    model,
    params,
    gates,
    evaluate: Callable[..., dict],
    structure: str = "unstructured",
    levels: Sequence[float] = LEVELS,
) -> tuple[float, dict[str, list[float]]]:
    """The metric of a network whose parts are closed one at a time, those of smallest magnitude first, not retrained.

    Args:
      model, params, gates: a network of prune_jax.models.
      evaluate: (params, gates) -> columns with eval_metric.
      structure: as config.pruning.structure: "unstructured" or "block:RxC", each kernel alone; "head", "ffn", ..., each
        group of units alone.
      levels: the closed share of the part, 0 to 1; a part that is sparser already stays as it is.
    Returns:
      (the metric of the network as it is, the metric at each level by part).
    Raises:
      ValueError: the network has no such structure, or it does not divide a kernel.
    """
    weights, own = trees.by_name(params), trees.by_name(gates)
    shapes = trees.by_name(units.gate_shapes(model, structure))
    full = {name: jnp.asarray(own.get(name, np.ones(leaf.shape, bool))) for name, leaf in shapes.items()}
    parts = list(_parts(model, structure, list(full)))
    before = evaluate(params, trees.nested(full, "/"))["eval_metric"]
    found = {}
    for name, kind, groups in parts:
        members = dict.fromkeys(member.name for group in groups for member in group.members) or [name]
        alone = trees.nested({member: full[member] for member in members if member in full}, "/")
        scores = jax.tree.map(jnp.abs, trees.nested({m: weights[m] * full[m] for m in members if m in full}, "/"))
        plan = plan_lib.make(alone, kind, "local", groups)
        found[name] = []
        for level in levels:
            closed = trees.by_name(plan.close(alone, scores, level, jax.random.key(0)))
            found[name].append(evaluate(params, trees.nested(full | closed, "/"))["eval_metric"])
    return before, found
