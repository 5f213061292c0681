"""Shows what each kernel, or each group of units, is worth alone: a heat map and a table.

    prune-jax sensitivity RUN_DIR [--out=DIR] [--kind=KIND] [--structure=STRUCTURE] [--levels L [L ...]]
        [--config.data.dir=DIR] ...

Each part is closed to the levels while all others stay as they are, the smallest magnitudes first, and the network is
evaluated without retraining. A part that loses little can be closed further than one that loses much: look at it before
you choose pruning.scope or rules. DIR receives sensitivity.png and sensitivity.csv.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from prune_jax.errors import UserError
from prune_jax.run.commands import arguments, evaluate


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("sensitivity", __doc__)
    parser.add_argument("run", metavar="RUN_DIR", help="the folder of a run")
    parser.add_argument("--out", metavar="DIR", help="where the files go (default: RUN_DIR/plots)")
    arguments.add_kind(parser, "best")
    parser.add_argument(
        "--structure", default="unstructured", help="unstructured or block:RxC, each kernel alone; head, ffn, ..."
    )
    parser.add_argument(
        "--levels", type=float, nargs="+", default=(0.5, 0.8, 0.95), metavar="L", help="closed shares, from 0 to 1"
    )
    evaluate.add_overrides(parser)
    args = parser.parse_args(argv)
    for level in args.levels:
        if not 0 < level <= 1:
            raise UserError(f"--levels has {level:g}; allowed: shares above 0 and at most 1, as 0.5 for half")

    from prune_jax import config as config_lib
    from prune_jax import files
    from prune_jax.report import plots
    from prune_jax.report import sensitivity as pictures
    from prune_jax.run import evaluate as evaluate_lib
    from prune_jax.run import folder as runs
    from prune_jax.run import sensitivity

    runs.read_config(args.run)
    folder = Path(args.out or Path(args.run) / "plots")
    files.check_writable(folder)
    with tempfile.TemporaryDirectory() as scratch:
        config, params, gates = evaluate.read(args.run, args.kind, Path(scratch), vars(args))
        model, dataset = evaluate_lib.opened(config, params, gates)
        evaluator = evaluate_lib.evaluator(config, model, dataset)
        try:
            before, found = sensitivity.measure(model, params, gates, evaluator, args.structure, args.levels)
        except ValueError as error:
            raise UserError(f"--structure is {args.structure!r}: {error}") from error
    metric = dataset.task.metrics[0]
    summary = {"method": config.pruning.method, "model_size": config_lib.model_label(config), "task": dataset.task.name}
    title = f"Sensitivity: {plots.run_label(summary)}"
    pictures.draw(folder / "sensitivity.png", title, metric, before, args.levels, found)
    pictures.write_csv(folder / "sensitivity.csv", metric, before, args.levels, found)
    width = max(map(len, found))
    print(f"{metric} {before:.4f}; its change when a part alone is closed to")
    print(f"{'part':<{width}}  " + "  ".join(f"{100 * level:>6g}%" for level in args.levels))
    for name, values in found.items():
        print(f"{name:<{width}}  " + "  ".join(f"{value - before:>+7.4f}" for value in values))
    print(f"{folder / 'sensitivity.png'} and sensitivity.csv are written")
