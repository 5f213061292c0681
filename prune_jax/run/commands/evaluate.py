"""Evaluates a network on the evaluation splits of its config.

    prune-jax evaluate PATH [--kind=KIND] [--config.data.dir=DIR] [--config.data.source=SOURCE] ...

PATH is the folder of a run, or an artifact.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from prune_jax.errors import UserError
from prune_jax.run.commands import arguments

_OVERRIDES = {
    **dict.fromkeys(("data.source", "data.dir", "data.task", "data.train", "data.eval", "data.tokenizer"), str),
    **{"data.cache_dir": str, "data.holdout": int, "train.eval_batch_size": int},
}


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("evaluate", __doc__)
    parser.add_argument("path", metavar="PATH", help="the folder of a run, or a .pjx file")
    arguments.add_kind(parser)
    add_overrides(parser)
    args = vars(parser.parse_args(argv))

    from prune_jax.run import evaluate

    with tempfile.TemporaryDirectory() as scratch:
        config, params, gates = read(args["path"], args["kind"], Path(scratch), args)
        columns, metric = evaluate.network(config, params, gates)
    for name, value in columns.items():
        print(f"{name} ({metric}) {value:.6f}" if name == "eval_metric" else f"{name} {value:.6f}")


def add_overrides(parser) -> None:
    """Adds the flags that say where the data of a run is now; `read` takes them."""
    for key, kind in _OVERRIDES.items():
        parser.add_argument(f"--config.{key}", type=kind, metavar="VALUE", help="in place of the run's own value")


def read(path: str, kind: str, scratch: Path, args: dict):
    """(resolved config with the overrides in args, params, gates) of a run's folder or an artifact."""
    overrides = {key: args[f"config.{key}"] for key in _OVERRIDES if args[f"config.{key}"] is not None}
    from prune_jax import config as config_lib
    from prune_jax.run import artifact
    from prune_jax.run import folder as runs

    if Path(path).is_dir():
        saved, params, gates = runs.load(path, arguments.kind_of(path, kind))
        tokenizer = Path(path) / "tokenizer"
    elif kind != "final":
        raise UserError(f"--kind is {kind}, which chooses among the checkpoints of a run; {path} is no folder")
    else:
        (saved, params, gates), text = artifact.read(path)
        tokenizer = artifact.save_tokenizer(text, scratch / "tokenizer", path)
    config = config_lib.completed(saved)
    config.model.init_from = ""  # the network is here; where it started from need not be
    config.data.cache_dir = ""  # the caller's own, whatever the file names: it may come from elsewhere
    if tokenizer and tokenizer.is_dir():
        config.data.tokenizer = str(tokenizer)
    for key, value in overrides.items():
        room, name = key.split(".")
        config[room][name] = value
    config.data.train = config.data.train or config.data.eval  # an artifact names no files; training rows are not read
    return config_lib.resolve(config, {})[0], params, gates
