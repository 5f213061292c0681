"""The network that a run starts from, where its weights are not random: config.model.init_from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prune_jax import config as config_lib
from prune_jax import models
from prune_jax.data.glue import task_of
from prune_jax.errors import UserError
from prune_jax.export import decoder, hf
from prune_jax.models import units
from prune_jax.pruning import trees
from prune_jax.run import folder as runs

Tree = Any


class Source(NamedTuple):
    """The network in a run's folder or in a transformers checkpoint, its classes in the order of a task's labels.

    Attributes:
      config: a run's, with the defaults of keys that are newer than it; None of a checkpoint.
      params, gates: NumPy trees. The head is left out where its classes have other names than the labels. A
        checkpoint has the gates of what torch.nn.utils.prune masks in it; a gate that is not there is open.
      note: what became of the head; "" if it is as it was.
      unnamed: whether nothing says which output of its classifier is which class.
      left_out: what of a checkpoint is not the network; "" for nothing.
    """

    config: Any
    params: Tree
    gates: Tree
    note: str
    unnamed: bool = False
    left_out: str = ""


def read(source: str, kind: str, labels: tuple[str, ...]) -> Source:
    """Reads the network in `source`.

    Args:
      source: the folder of a run of this program, or a transformers checkpoint: a folder or a name on the hub.
      kind: which of a run's checkpoints, as runs.load names them.
      labels: names of the task's classes in the order of their ids; () where it has no names.
    Raises:
      UserError: no network is there, or it cannot be read.
    """
    if not runs.is_run(source):
        if decoder.is_checkpoint(source):
            return Source(None, decoder.load(Path(source))[1], {}, "")
        found = hf.load_for(source, labels)
        check_finite(source, found.params)
        return Source(None, found.params, found.gates, found.note, found.unnamed, found.left_out)
    saved, params, gates = runs.load(source, kind)
    check_finite(source, params)
    config = config_lib.completed(saved)
    theirs = task_of(config.data).labels
    head = next((name for name in models.HEADS if name in params), None)
    if head is None or not theirs or not labels or theirs == labels:
        return Source(config, params, gates, "")
    order, note = hf.class_order(theirs, labels), f"its {head}, {', '.join(theirs)} there, in this task's order"
    if order is None:
        note = f"its own {head} is of {', '.join(theirs)}, not of {', '.join(labels)}"
    return Source(config, *(hf.with_head(tree, head, order) for tree in (params, gates)), note)


def check_finite(source: str, params: Tree) -> None:
    """UserError for weights that are NaN or infinite: training on would fail, and blame its learning rate."""
    for name, leaf in trees.by_name(params).items():
        if wrong := leaf.size - np.count_nonzero(np.isfinite(leaf)):
            raise UserError(f"{source} holds no sound network: {name} has {wrong:,} weights that are not finite")


class Start(NamedTuple):
    """What a new network takes over from a Source that fits it.

    Attributes:
      params, gates: the leaves by name. Those of a new head, and of a pooler that the source lacks, are not there.
      line: what was done, for the log.
    """

    params: dict[str, np.ndarray]
    gates: dict[str, np.ndarray]
    line: str

    def into(self, params: Tree, gates: Tree) -> tuple[Tree, Tree]:
        """The trees of a new network with these leaves in the place of its own, in its dtypes."""

        def merge(leaves, tree):
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: np.asarray(leaves.get(trees.name(path), leaf), leaf.dtype), tree
            )

        return merge(self.params, params), merge(self.gates, gates)


_SPARSE = 0.01  # the share of zeros from which a checkpoint is taken for a pruned one; a dense one has hardly any


def _module(name: str) -> str:
    """The part of the network that a leaf belongs to: a layer, an embedding, the pooler, the head."""
    return name.split("/")[0]


def _zeros(params: Tree, gates: Tree, keep: str, masks: dict[str, np.ndarray]) -> tuple[dict, str]:
    """(the gates of a checkpoint by name, what the log says of them).

    Where it has masks they are the gates; else its zeros are.
    """
    leaves = trees.by_name(params)
    if masks and keep != "never":
        share = sum(int(np.sum(~gate)) for gate in masks.values()) / sum(gate.size for gate in masks.values())
        return masks, f"its {len(masks)} masks close {100 * share:.2f} % of their weights (config.model.keep_zeros)"
    found = {name: leaves[name] != 0 for name in trees.by_name(gates) if name in leaves}
    total, closed = (sum(n) for n in zip(*((gate.size, np.sum(~gate)) for gate in found.values()), strict=True))
    if keep == "never" or not closed or (keep == "auto" and closed < _SPARSE * total):
        return {}, ""
    return (
        found,
        f"{100 * closed / total:.2f} % of its kernels' weights are 0 and stay closed (config.model.keep_zeros)",
    )


def _blank(shapes: Tree, new: set[str]) -> Tree:
    """Zeros in the place of modules that a network lacks, so that it can be asked: a classifier then knows nothing."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), {name: shapes[name] for name in new})


def start(
    source: str,
    kind: str,
    model,
    labels: tuple[str, ...],
    structure: str = "unstructured",
    keep_zeros: str = "auto",
    order: Callable[[Tree], tuple[list[int], str]] | None = None,
) -> Start:
    """Reads the network in `source` and fits it to `model`.

    A head that the source lacks, or has with another number of outputs or for other labels, stays as it is in the new
    network: it belongs to another task. So does the pooler where the source has none. Everything else must agree.

    Args:
      source, kind, labels: as read's.
      model: the network to start, as prune_jax.models makes it; structure: by which it is to be pruned.
      keep_zeros: as config.model's; the gates of a run are taken as they are.
      order: params -> (the output of each class, a note) where nothing names the outputs of a classifier
        (fitting.class_order); without, they are taken as they are.
    Raises:
      UserError: no network is there, or it differs from the model, with a list of what differs.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
    own = shapes["params"]
    network = read(source, kind, labels)
    differs = trees.differing(network.params, own)
    new = {_module(n) for n, (_, here) in differs.items() if _module(n) in models.HEADS and here != trees.MISSING}
    new |= {name for name in models.OPTIONAL if name in own and name not in network.params}
    problems = [
        f"{name}: {there} there, {here} here"
        for name, (there, here) in differs.items()
        if _module(name) not in (*models.HEADS, *new)
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"config.model.init_from={source!r} is another network than this config's: {'; '.join(problems[:5])}{more}"
        )
    closed = {name for name, gate in trees.by_name(network.gates).items() if not np.all(gate)}
    without = trees.by_name(own).keys() - trees.by_name(units.gate_shapes(model, structure)).keys()
    if stranded := sorted(closed & without):
        theirs = network.config.pruning.structure if network.config else "unstructured"
        raise UserError(
            f"config.model.init_from={source!r} has closed gates of {stranded[0]}, which pruning.structure={structure} "
            f"has no gates for; allowed: the structure of that run, {theirs}, or what export --shrink makes of it"
        )
    if network.unnamed and model.head not in new and order:
        at, note = order({**network.params, **_blank(own, new)})
        network = network._replace(
            note=note, **{name: hf.with_head(getattr(network, name), model.head, at) for name in ("params", "gates")}
        )
    kept = own.keys() & set(models.HEADS) - new
    heads = [network.note] if network.note else [f"its {name}" for name in kept]
    closed, zeros = (network.gates, "")
    if network.config is None:
        closed, zeros = _zeros(network.params, shapes["gates"], keep_zeros, trees.by_name(network.gates))
    line = "; ".join(
        [
            f"initial   {source}",
            *(f"a new {name}" for name in sorted(new)),
            *heads,
            *filter(None, [zeros, network.left_out]),
        ]
    )
    taken = (
        {name: leaf for name, leaf in trees.by_name(tree).items() if _module(name) not in new}
        for tree in (network.params, closed)
    )
    return Start(*taken, line)
