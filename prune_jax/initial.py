"""The weights a run starts from, where they are not random: config.model.init_from."""

import jax
import numpy as np

from prune_jax import gates as gates_lib
from prune_jax import runs, trees
from prune_jax.errors import UserError
from prune_jax.models import hf

Tree = dict


def _module(name: str) -> str:
    """The part of the network that a leaf belongs to: a layer, an embedding, the pooler, the head."""
    return name.split("/")[0]


def _is_head(name: str) -> bool:
    return _module(name) in gates_lib.HEADS


def network(
    source: str, kind: str, params: Tree, gates: Tree, labels: tuple[str, ...]
) -> tuple[tuple[Tree, Tree], str]:
    """The network in `source`, in the shapes of a new one: ((params, gates), a line that says what was done).

    A head that the source lacks, or has with another number of outputs or other labels, stays as it is in the new
    network: another task's. So does the pooler where the source has none. Everything else must agree.

    Args:
      source: the folder of a run of this program, closed gates included; or a transformers checkpoint, a folder or a
        name on the hub, which starts with all gates open.
      kind: which of a run's checkpoints, as runs.load names them.
      params, gates: the new network, its head the one to keep where the source has no equal.
      labels: of the task, for the outputs of a transformers checkpoint, as hf.load_for takes them.
    Raises:
      UserError: no network is there, or it differs from the new one, with a list of what differs.
    """
    if runs.is_run(source):
        (_, found_params, found_gates), note = runs.load(source, kind), ""
    else:
        (found_params, note), found_gates = hf.load_for(source, labels), {}
    differs = trees.differing(found_params, params)
    new = {_module(n) for n, (_, here) in differs.items() if _is_head(n) and here != trees.MISSING}
    if "pooler" in params and "pooler" not in found_params:
        new.add("pooler")
    problems = [
        f"{name}: {there} there, {here} here"
        for name, (there, here) in differs.items()
        if not _is_head(name) and _module(name) not in new
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"config.model.init_from={source!r} is another network than this config's: {'; '.join(problems[:5])}{more}"
        )

    def take(own: Tree, other: Tree) -> Tree:
        leaves = trees.by_name(other)

        def at(path, leaf):
            name = trees.name(path)
            return leaf if _module(name) in new or name not in leaves else np.asarray(leaves[name], leaf.dtype)

        return jax.tree_util.tree_map_with_path(at, own)

    kept = params.keys() & set(gates_lib.HEADS) - new
    done = [*(f"a new {name}" for name in sorted(new)), *([note] if note else (f"its {name}" for name in kept))]
    return (take(params, found_params), take(gates, found_gates)), "; ".join([f"initial   {source}", *done])
