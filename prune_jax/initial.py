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


def _is_head(name: str) -> bool:
    return name.split("/")[0] in gates_lib.HEADS


def network(source: str, kind: str, params: Tree, gates: Tree) -> tuple[tuple[Tree, Tree], str]:
    """The network in `source`, in the shapes of a new one: ((params, gates), a line that says what was done).

    A head that the source lacks, or has with another number of outputs, stays as it is in the new network: another
    task's. So does the pooler where the source has none. Everything else must agree.

    Args:
      source: the folder of a run of this program, closed gates included; or a transformers checkpoint, a folder or a
        name on the hub, which starts with all gates open.
      kind: which of a run's checkpoints, as runs.load names them.
      params, gates: the new network, its head the one to keep where the source has no equal.
    Raises:
      UserError: no network is there, or it differs from the new one, with a list of what differs.
    """
    found_params, found_gates = runs.load(source, kind)[1:] if runs.is_run(source) else (hf.load(source), {})
    wanted, given = _leaves(params), _leaves(found_params)
    new = {n for n in wanted if _is_head(n) and getattr(given.get(n), "shape", None) != wanted[n].shape}
    if "pooler" not in found_params:
        new |= {n for n in wanted if n.startswith("pooler/")}
    differs = []
    for name in sorted(wanted.keys() | {n for n in given if not _is_head(n)}):
        ours, theirs = (getattr(leaves.get(name), "shape", "missing") for leaves in (wanted, given))
        if ours != theirs and name not in new:
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
            return leaf if name in new or name not in leaves else np.asarray(leaves[name], leaf.dtype)

        return jax.tree_util.tree_map_with_path(at, own)

    line = "; ".join([f"initial   {source}", *(f"a new {name}" for name in sorted({n.split("/")[0] for n in new}))])
    return (take(params, found_params), take(gates, found_gates)), line
