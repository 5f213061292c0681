"""The field's methods on one task, from a pretrained checkpoint, each with the dense network as its teacher.

    python -m benchmarks.field --dir=GLUE_FOLDER --init_from=CHECKPOINT [--task=mrpc] [--seeds 0] [--levels 90 97 80 95]
    python -m benchmarks.field --page    # docs/results/field.md, from the rows alone

A dense network per seed, then one run per level, seed and method, all from the checkpoint. Of a run the last epoch is
taken, whatever it is, so that the dev set chooses nothing. Each finished run adds a JSON line to --rows; runs that have
one are left out, and one that was stopped goes on where it was, so the same command ends the table over days.
"""

import argparse
import shutil
import subprocess
from pathlib import Path

from benchmarks import field_page, harness
from configs import common
from prune_jax import report
from prune_jax.run import train

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "results" / "field.jsonl"
TEACHER = {"temperature": 5.5, "weight": 1.0}
# GMP*'s course, which is oBERT's too: a first step to 70 %, a rate that is rewound every two epochs.
REWOUND = {"pruning.start_sparsity": 0.7, "train.rewind_epochs": 2, "train.warmup_fraction": 0.0}
METHODS = {  # name: (method, keys that differ from those that all have)
    "gmp": ("magnitude", REWOUND),
    "sensitivity": ("sensitivity", {}),
    "platon": ("platon", {}),
    "movement_soft": ("movement", {"movement.threshold": "soft", "movement.regrow": True, "movement.frequency": 1}),
    # Blocks of 50, as published, would take 100 numbers per weight.
    "obert": ("obert", {**REWOUND, "obert.block": 10, "obert.gradients": 100}),
    "spt_best": ("spt", {"spt.control_variate": True, "spt.absolute": True}),
}


def config_for(args, seed: int, method: str, level: float | None, teacher: str):
    """The config of a run; level in percent, None for the dense network."""
    config = common.get_config()
    config.train.seed, config.train.batch_size, config.train.eval_batch_size = seed, 32, 32
    config.train.learning_rate, config.train.lr_schedule = 8e-5, "linear"
    config.train.epochs = args.dense_epochs if level is None else args.epochs
    config.train.checkpoint_every = 40
    config.data.task, config.data.source, config.data.dir = args.task, "tsv", args.dir
    config.data.buckets = (16, 32, 48, 64, 80, 96, 128)
    config.data.holdout, config.data.max_train_examples = args.holdout, args.examples
    config.model.size, config.model.init_from = args.size, args.init_from
    config.report.sinks = ()
    if level is None:
        config.pruning.method = "baseline"
        return config
    name, keys = METHODS[method]
    config.pruning.method, config.pruning.scope, config.pruning.structure = name, "global", "encoder"
    config.pruning.schedule, config.pruning.end_sparsity = "cubic", level / 100
    config.pruning.start_epoch, config.pruning.end_epoch = args.epochs // 10, args.epochs * 7 // 10
    config.distill.teacher, config.distill.checkpoint = teacher, "last"
    config.distill.update(TEACHER)
    for key, value in keys.items():
        room, leaf = key.split(".")
        config[room][leaf] = value
    return config


def identity(row: dict) -> tuple:
    """What makes two rows the same measurement."""
    return tuple(row[key] for key in ("task", "method", "level", "seed", "epochs", "holdout", "examples"))


def commit() -> str:
    """The commit that is checked out, "" outside a repository."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def measure(args, seed: int, method: str, level: float | None, teacher: str) -> Path:
    """Runs, resumes or finds a run, and adds its row; the folder that it has."""
    config = config_for(args, seed, method, level, teacher)
    folder = args.out / f"{args.task}_{method}_{'dense' if level is None else f'{level:g}'}_{seed}"
    row = {
        "benchmark": "field",
        "task": args.task,
        "method": method,
        "level": level,
        "seed": seed,
        "epochs": config.train.epochs,
        "holdout": args.holdout,
        "examples": args.examples,
    }
    done = harness.read(args.rows)
    if any(identity(one) == identity(row) for one in done) and (level is not None or folder.exists()):
        return folder
    version = commit()
    summary = train.train_and_evaluate(config, folder)
    epochs = report.read_metrics(folder)
    last = epochs[-1]
    row |= {
        "steps": summary["steps"],
        "network": summary["model_size"],
        "sparsity": last["sparsity"],
        "metrics": {summary["metric_name"]: last["eval_metric"]}
        | ({"f1": last["eval_f1"]} if "eval_f1" in last else {}),
        "curve": [[one["step"], round(one["sparsity"], 4), round(one["eval_metric"], 4)] for one in epochs],
        "seconds": round(summary["seconds"]),
        "commit": version,
    }
    if not any(identity(one) == identity(row) for one in done):
        harness.add(args.rows, **row)
    if level is not None:
        shutil.rmtree(folder / "checkpoints")  # only the dense network is read again
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", default="", help="the GLUE folder")
    parser.add_argument("--init_from", default="", help="a run or a checkpoint that all start from")
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--size", default="base", help="the preset of what the checkpoint does not say")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--levels", nargs="+", type=float, default=[90, 97, 80, 95], help="percent, first ones first")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=20, help="of a pruned run")
    parser.add_argument("--dense_epochs", type=int, default=5)
    parser.add_argument("--holdout", type=int, default=0, help="training examples to evaluate on, to try settings")
    parser.add_argument("--examples", type=int, default=0, help="of the training set; 0: all")
    parser.add_argument("--out", type=Path, default=Path("results_field"), help="the folder of the runs")
    parser.add_argument("--rows", type=Path, default=ROWS, help="the file of the JSON lines")
    parser.add_argument("--page", action="store_true", help="write docs/results/field.md, and measure nothing")
    args = parser.parse_args()
    if args.page:
        field_page.PAGE.write_text(field_page.page(harness.read(args.rows)), encoding="utf-8")
        return
    if not (args.dir and args.init_from):
        parser.error("--dir and --init_from: both are needed to measure")
    for seed in args.seeds:
        dense = measure(args, seed, "dense", None, "")
        for level in args.levels:
            for method in args.methods:
                measure(args, seed, method, level, str(dense))


if __name__ == "__main__":
    main()
