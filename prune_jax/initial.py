"""The weights a run starts from, where they are not random: config.model.init_from."""

import jax
import numpy as np

from prune_jax import gates as gates_lib
from prune_jax import runs
from prune_jax.errors import UserError
from prune_jax.models import hf

Tree = dict


def _leaves(tree: Tree) -> dict[str, object]:
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


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
    wanted, given = _leaves(params), _leaves(found_params)
    new = {_module(n) for n in wanted if _is_head(n) and getattr(given.get(n), "shape", None) != wanted[n].shape}
    if "pooler" in params and "pooler" not in found_params:
        new.add("pooler")
    differs = []
    for name in sorted(wanted.keys() | {n for n in given if not _is_head(n)}):
        ours, theirs = (getattr(leaves.get(name), "shape", "missing") for leaves in (wanted, given))
        if ours != theirs and _module(name) not in new:
            differs.append(f"{name}: {theirs} there, {ours} here")
    if differs:
        more = f"; and {len(differs) - 5} more" if len(differs) > 5 else ""
        raise UserError(
            f"config.model.init_from={source!r} is another network than this config's: {'; '.join(differs[:5])}{more}"
        )

    def take(own: Tree, other: Tree) -> Tree:
        leaves = _leaves(other)

        def at(path, leaf):
            name = "/".join(key.key for key in path)
            return leaf if _module(name) in new or name not in leaves else np.asarray(leaves[name], leaf.dtype)

        return jax.tree_util.tree_map_with_path(at, own)

    kept = {_module(n) for n in wanted if _is_head(n)} - new
    done = [*(f"a new {name}" for name in sorted(new)), *([note] if note else (f"its {name}" for name in kept))]
    return (take(params, found_params), take(gates, found_gates)), "; ".join([f"initial   {source}", *done])
