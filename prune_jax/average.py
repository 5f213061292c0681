"""The mean of several networks as a run's folder: a "model soup" (Wortsman et al., 2022, arXiv:2203.05482).

    python -m prune_jax.average OUT_DIR RUN_DIR RUN_DIR ... [--kind=best|last]

Networks fine-tuned from one checkpoint, with other rates, orders or numbers of epochs, lie in one basin, and their mean
is often better than any of them, at the price of one. Pruned ones must have the same gates closed, as networks
retrained from one pruned run have. OUT_DIR gets the first run's config.json and tokenizer, and the mean as its best
checkpoint, so --config.model.init_from, evaluate, export and compress take it.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prune_jax import command, runs, trees, workdir
from prune_jax.errors import UserError


def networks(folders: Sequence, kind: str = "best") -> runs.Network:
    """The first run's config and gates, and the mean of the runs' params, each leaf summed in float64.

    Raises:
      UserError: a folder is not a run's, or its network has other shapes or other gates than the first.
    """
    import jax

    first = runs.load(folders[0], kind)
    total = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), first.params)
    for folder in folders[1:]:
        other = runs.load(folder, kind)
        shapes = trees.differing(other.params, first.params)
        if shapes:
            name, (found, wanted) = next(iter(shapes.items()))
            raise UserError(
                f"{folder} and {folders[0]} have different networks: {name} is {found} in one and {wanted} in the other"
            )
        gates = trees.by_name(other.gates)
        for name, gate in trees.by_name(first.gates).items():
            if not np.array_equal(gate, gates[name]):
                raise UserError(
                    f"{folder} has other gates of {name} closed than {folders[0]}, so their mean would be less sparse "
                    "than they are; average networks that were retrained from one pruned run"
                )
        total = jax.tree.map(np.add, total, other.params)
    params = jax.tree.map(lambda leaf: (leaf / len(folders)).astype(np.float32), total)
    return runs.Network(first.config, params, first.gates)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m prune_jax.average", description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", help="the folder to make; it must not exist, or be empty")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="the folder of a run")
    parser.add_argument("--kind", default="best", choices=("best", "last"), help="checkpoint (best)")
    args = parser.parse_args(argv)
    folder = runs.new_folder(args.out_dir)
    mean = networks(args.runs, args.kind)
    with workdir.write_folder(folder) as partial:
        runs.write(partial, mean)
        tokenizer = Path(args.runs[0]) / "tokenizer"
        if tokenizer.is_dir():
            shutil.copytree(tokenizer, partial / "tokenizer")
    print(f"{folder} holds the mean of {len(args.runs)} networks, their {args.kind} checkpoints")


if __name__ == "__main__":
    sys.exit(command.run("average", main))
