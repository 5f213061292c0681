"""Who gets the credit of an exploration pass: SPT's variants beside magnitude, movement and chance.

    python -m benchmarks.credit [--dir=MNIST_FOLDER] [--variants literal layer ...] [--seeds 0 1 2]

LeNet-300-100 on MNIST, or on scikit-learn's digits without --dir. One dense network a seed, from which every variant
starts; sparsity rises step by step, and every level of --levels is held for two more epochs of retraining. One JSON
line a variant and seed: the test metric at the end of each level, and the seconds of a training step beside those of
magnitude. The last lines are the means over the seeds.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks import harness
from configs import common
from prune_jax import report, train

_RISE = (50, 75, 85, 90, 95, 97, 98, 99)

VARIANTS = {  # name: (method, scope, keys of config.spt)
    "random": ("spt", "local", {"epsilon": 1e-9}),  # draws no gate: every score is 0, and ties close at random
    "magnitude_local": ("magnitude", "local", {}),
    "magnitude_global": ("magnitude", "global", {}),
    "movement_global": ("movement", "global", {}),
    "literal": ("spt", "local", {"center": False}),
    "weight": ("spt", "local", {}),
    "weight_4": ("spt", "local", {"explorations": 4}),
    "antithetic": ("spt", "local", {"explorations": 4, "antithetic": True}),
    "candidates": ("spt", "local", {"candidates": "threshold"}),
    "absolute": ("spt", "local", {"absolute": True}),
    "control_variate": ("spt", "global", {"control_variate": True}),
    "control_variate_absolute": ("spt", "global", {"control_variate": True, "absolute": True}),
    "layer": ("spt", "global", {"credit": "layer"}),
    "layer_10": ("spt", "global", {"credit": "layer", "epsilon": 0.1}),
    "layer_30": ("spt", "global", {"credit": "layer", "epsilon": 0.3}),
    "layer_50": ("spt", "global", {"credit": "layer", "epsilon": 0.5}),
    "layer_30_4": ("spt", "global", {"credit": "layer", "epsilon": 0.3, "explorations": 4}),
    "layer_movement": ("spt", "global", {"credit": "layer", "epsilon": 0.3, "inside": "movement"}),
}


def config_for(folder: str, seed: int):
    """What the dense run and every variant share."""
    config = common.get_config()
    config.model.name = "lenet_300_100"
    config.model.size = "tiny"
    config.model.init_checkpoint = "last"
    config.data.task, config.data.source, config.data.dir = (
        ("mnist", "auto", folder) if folder else ("digits", "auto", "")
    )
    config.train.batch_size = 128 if folder else 48
    config.train.eval_batch_size = 1000 if folder else 360
    config.train.weight_decay = config.train.clip_norm = 0.0
    config.train.learning_rate = 1e-3
    config.train.seed = seed
    return config


def sparsity_steps(levels) -> list[float]:
    """One rising step an epoch, and two more at each of the levels."""
    return [step for step in _RISE if step <= max(levels) for _ in range(3 if step in levels else 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", default="", help="MNIST's IDX files")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--levels", nargs="+", type=float, default=[90, 97, 99], choices=_RISE)
    parser.add_argument("--dense_epochs", type=int, default=10)
    args = parser.parse_args()
    steps = sparsity_steps(args.levels)
    last_of = {level: max(i for i, step in enumerate(steps) if step == level) for level in args.levels}
    found = {name: [] for name in args.variants}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in args.seeds:
            dense = config_for(args.dir, seed)
            dense.pruning.method, dense.train.epochs = "baseline", args.dense_epochs
            start = train.train_and_evaluate(dense, Path(scratch) / f"dense_{seed}")
            for name in args.variants:
                config, folder = config_for(args.dir, seed), Path(scratch) / f"{name}_{seed}"
                config.pruning.method, config.pruning.scope, spt = VARIANTS[name]
                config.spt.update(spt)
                config.model.init_from = str(Path(scratch) / f"dense_{seed}")
                config.pruning.start_epoch, config.pruning.sparsity_steps = 0, tuple(steps)
                config.train.epochs = len(steps)
                train.train_and_evaluate(config, folder)
                rows = report.read_metrics(folder)
                metrics = {f"{level:g}": rows[i]["eval_metric"] for level, i in last_of.items()}
                seconds = statistics.median(row["seconds"] for row in rows[1:]) / rows[0]["step"]
                found[name].append({**metrics, "step_ms": 1000 * seconds})
                harness.report(
                    benchmark="credit",
                    task=config.data.task,
                    variant=name,
                    seed=seed,
                    dense=start["final_metric"],
                    metrics=metrics,
                    step_ms=round(1000 * seconds, 2),
                )
    for name, seeds in found.items():
        mean = {key: round(statistics.mean(row[key] for row in seeds), 4) for key in seeds[0]}
        print(json.dumps({"benchmark": "credit", "variant": name, "seeds": len(seeds), "mean": mean}), flush=True)


if __name__ == "__main__":
    main()
