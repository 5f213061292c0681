"""Averages the networks of several runs: a "model soup" (Wortsman et al., 2022, arXiv:2203.05482).

    prune-jax average RUN_DIR [RUN_DIR ...] OUT_DIR [--kind=KIND]

Networks that were fine-tuned from one checkpoint, with other rates, orders or numbers of epochs, lie in one basin.
Their mean is often better than any of them, at the price of one. Pruned networks must have the same gates closed, as
networks retrained from one pruned run have. Networks whose classes or tokens are in another order have no mean.

OUT_DIR receives the first run's config.json and tokenizer, and the mean as its best checkpoint. config.model.init_from
takes such a folder, and so do evaluate, export and compress.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.run import folder as runs
from prune_jax.run.commands import arguments


def networks(folders: Sequence, kind: str = "best") -> runs.Network:
    """The first run's config and gates, and the mean of the runs' params, each leaf summed in float64.

    Args:
      folders: of the runs; at least one.
      kind: which checkpoint of each, as --kind names it.
    Raises:
      UserError: a folder is not a run's, or its network has other shapes, gates, classes or tokens than the first.
    """
    import jax

    from prune_jax.pruning import trees
    from prune_jax.run import fitting

    first = runs.load(folders[0], arguments.kind_of(folders[0], kind))
    total = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), first.params)
    for folder in folders[1:]:
        other = runs.load(folder, arguments.kind_of(folder, kind))
        shapes = trees.differing(other.params, first.params)
        if shapes:
            name, (other_shape, shape) = next(iter(shapes.items()))
            raise UserError(
                f"{folder} and {folders[0]} have different networks: {name} is {other_shape} in one and {shape} in the "
                "other"
            )
        fitting.check_alike(first, other, folders[0], folder)
        ours, theirs = (trees.by_name(network.gates) for network in (first, other))
        for name in ours | theirs:
            one, two = (gates.get(name, True) for gates in (ours, theirs))  # without a gate it is open
            if not np.array_equal(*np.broadcast_arrays(one, two)):
                raise UserError(
                    f"{folder} has other gates of {name} closed than {folders[0]}, so their mean would be less sparse "
                    "than they are; average networks that were retrained from one pruned run"
                )
        total = jax.tree.map(np.add, total, other.params)
    params = jax.tree.map(lambda leaf: (leaf / len(folders)).astype(np.float32), total)
    return runs.Network(first.config, params, first.gates)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("average", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="the folder of a run")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="the folder to make; it must not exist, or be empty")
    arguments.add_kind(parser, "best")  # the mean of quantised networks is none
    args = parser.parse_args(argv)
    folder = runs.new_folder(args.out_dir)
    mean = networks(args.runs, args.kind)
    with files.write_folder(folder) as partial:
        runs.write(partial, mean)
        tokenizer = Path(args.runs[0]) / "tokenizer"
        if tokenizer.is_dir():
            shutil.copytree(tokenizer, partial / "tokenizer")
    print(f"{folder} holds the mean of {len(args.runs)} networks, their {args.kind} checkpoints")
