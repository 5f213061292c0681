"""Who gets the credit of an exploration pass: SPT's variants beside magnitude, movement and chance.

    python -m benchmarks.credit [--dir=MNIST_FOLDER] [--variants literal layer_30 ...] [--seeds 0 1 2]
    python -m benchmarks.credit --dir=GLUE_FOLDER --init_from=CHECKPOINT --examples=5120 [--teacher=DENSE_RUN]
    python -m benchmarks.credit --dir=MNIST_FOLDER --ablate=exploration [--variants control_variate_absolute ...]

LeNet-300-100 on MNIST, or on scikit-learn's digits without --dir: one dense network a seed, from which every variant
starts. With --init_from, that run's or checkpoint's network on SST-2. Sparsity rises step by step, one an epoch, and
every level of --levels is held for --hold more epochs. One JSON line a variant and seed: the test or dev metric at the
end of each level, and the seconds of a training step beside those of magnitude. The last lines are the means over the
seeds.

--ablate leaves one part out of SPT's closing order, while the training step stays as it is: `exploration`, what passes
found (without it, credit=layer has one curvature for all layers, and scores without a first-order part close at
random), or `first_order`, the average of each unit's own first-order effect. A variant's worth belongs to exploration
where the variant loses it without exploration.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import harness
from configs import common
from prune_jax import methods, report
from prune_jax.pruning.method import Method, Pruned, PruneInfo
from prune_jax.run import train

VARIANTS = {  # name: (method, scope, keys of the method's room)
    "random": ("spt", "local", {"epsilon": 1e-9}),  # draws no gate: every score is 0, and ties close at random
    "magnitude_local": ("magnitude", "local", {}),
    "magnitude_global": ("magnitude", "global", {}),
    "movement_local": ("movement", "local", {}),
    "movement_every_step": ("movement", "local", {"frequency": 1}),
    "movement_global": ("movement", "global", {}),
    "movement_soft": ("movement", "global", {"threshold": "soft"}),
    "regrow_local": ("movement", "local", {"regrow": True, "frequency": 1}),
    "regrow_global": ("movement", "global", {"regrow": True, "frequency": 1}),
    "regrow_adam": ("movement", "local", {"regrow": True, "frequency": 1, "scores": "adam"}),
    "regrow_soft": ("movement", "global", {"threshold": "soft", "regrow": True, "frequency": 1}),
    "literal": ("spt", "local", {"center": False}),
    "weight": ("spt", "local", {}),
    "weight_4": ("spt", "local", {"explorations": 4}),
    "antithetic": ("spt", "local", {"explorations": 4, "antithetic": True}),
    "candidates": ("spt", "local", {"candidates": "threshold"}),
    "absolute": ("spt", "local", {"absolute": True}),
    "control_variate": ("spt", "global", {"control_variate": True}),
    "control_variate_absolute": ("spt", "global", {"control_variate": True, "absolute": True}),
    "sensitivity": ("sensitivity", "global", {}),  # the first-order part of the former, by itself
    "platon": ("platon", "global", {}),
    "layer_1": ("spt", "global", {"credit": "layer", "epsilon": 0.01}),
    "layer_10": ("spt", "global", {"credit": "layer", "epsilon": 0.1}),
    "layer_30": ("spt", "global", {"credit": "layer", "epsilon": 0.3}),
    "layer_50": ("spt", "global", {"credit": "layer", "epsilon": 0.5}),
    "layer_30_4": ("spt", "global", {"credit": "layer", "epsilon": 0.3, "explorations": 4}),
    "layer_movement": ("spt", "global", {"credit": "layer", "epsilon": 0.3, "inside": "movement"}),
    "group": ("spt", "global", {"credit": "group"}),  # of --structure=head+ffn or block:RxC, as the next two
    "group_control_variate": ("spt", "global", {"credit": "group", "control_variate": True}),
    "group_absolute": ("spt", "global", {"credit": "group", "control_variate": True, "absolute": True}),
}
_ABLATIONS = {  # part: the arrays of SPT's state that hold it
    "exploration": ("scores", "importance"),
    "first_order": ("first_order",),
}
_UNGROUPED = [name for name, (_, _, keys) in VARIANTS.items() if keys.get("credit") != "group"]


def ablatable(part: str) -> list[str]:
    """The variants that have this part."""
    explore = [name for name, (method, _, _) in VARIANTS.items() if method == "spt"]
    return [name for name in explore if part == "exploration" or VARIANTS[name][2].get("control_variate")]


def ablated(method: Method, part: str) -> Method:
    """SPT whose closing order lacks one of its parts, "exploration" or "first_order"."""

    def prune(info: PruneInfo) -> Pruned:
        left_out = {
            name: jax.tree.map(jnp.zeros_like, info.state[name]) for name in _ABLATIONS[part] if name in info.state
        }
        return method.prune(info._replace(state={**info.state, **left_out}))

    return method._replace(prune=prune)


def config_for(args, seed: int):
    """What the dense run and every variant share."""
    config = common.get_config()
    config.train.seed = seed
    config.model.size = "tiny"
    config.data.dir, config.data.max_train_examples = args.dir, args.examples
    config.train.learning_rate = args.learning_rate or (5e-5 if args.init_from else 1e-3)
    if args.init_from:
        config.data.source, config.data.max_len, config.data.buckets = "tsv", 64, tuple(args.buckets)
        config.pruning.structure = "encoder"
        config.train.eval_batch_size = 32  # of a bucket, whose last batch is filled up
        config.train.batch_size, config.movement.frequency = args.batch_size, 20  # an epoch is short here
    else:
        config.model.name, config.data.source = "lenet_300_100", "auto"
        config.data.task, config.train.batch_size = ("mnist", 128) if args.dir else ("digits", 48)
        config.train.eval_batch_size = 1000 if args.dir else 360
        config.train.weight_decay = config.train.clip_norm = 0.0
    return config


def sparsity_steps(rise, levels, hold: int) -> list[float]:
    """One rising step an epoch, and `hold` more at each of the levels."""
    steps = sorted({*(step for step in rise if step <= max(levels)), *levels})
    return [step for step in steps for _ in range(1 + hold if step in levels else 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", default="", help="MNIST's IDX files, or the GLUE folder with --init_from")
    parser.add_argument("--init_from", default="", help="a run or a checkpoint to start from on SST-2")
    parser.add_argument("--teacher", default="", help="distill.teacher of every variant")
    parser.add_argument("--structure", help="pruning.structure; encoder with --init_from, unstructured without")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="all but groups, or all of --ablate")
    parser.add_argument("--ablate", choices=list(_ABLATIONS), help="what to leave out of SPT's closing order")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--levels", nargs="+", type=float, default=[90, 97, 99], help="percent")
    parser.add_argument("--rise", nargs="*", type=float, default=[50, 75, 85, 90, 95, 97, 98, 99], help="percent")
    parser.add_argument("--hold", type=int, default=2, help="epochs")
    parser.add_argument("--examples", type=int, default=0, help="of the training set; 0: all")
    parser.add_argument("--batch_size", type=int, default=64, help="with --init_from")
    parser.add_argument("--buckets", nargs="+", type=int, default=[8, 16, 32, 64], help="tokens, with --init_from")
    parser.add_argument("--learning_rate", type=float, default=0.0, help="0: 1e-3, or 5e-5 with --init_from")
    parser.add_argument("--dense_epochs", type=int, default=10, help="without --init_from")
    args = parser.parse_args()
    ungrouped = _UNGROUPED if args.ablate is None else [n for n in ablatable(args.ablate) if n in _UNGROUPED]
    args.variants = args.variants or ungrouped
    for name in args.variants:
        if args.ablate and name not in ablatable(args.ablate):
            parser.error(f"--ablate={args.ablate}: {name} has none; allowed: {', '.join(ablatable(args.ablate))}")

    def method_of(config) -> Method:
        method = methods.from_config(config)
        return ablated(method, args.ablate) if args.ablate else method

    steps = sparsity_steps(args.rise, args.levels, args.hold)
    last_of = {level: max(i for i, step in enumerate(steps) if step == level) for level in args.levels}
    found = {name: [] for name in args.variants}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in args.seeds:
            start, dense = args.init_from, None
            if not start:
                start, config = str(Path(scratch) / f"dense_{seed}"), config_for(args, seed)
                config.pruning.method, config.train.epochs = "baseline", args.dense_epochs
                dense = train.train_and_evaluate(config, start)["final_metric"]
            for name in args.variants:
                config, folder = config_for(args, seed), Path(scratch) / f"{name}_{seed}"
                config.pruning.method, config.pruning.scope, keys = VARIANTS[name]
                if args.structure:
                    config.pruning.structure = args.structure
                config.get(config.pruning.method, {}).update(keys)
                config.model.init_from, config.distill.teacher = start, args.teacher
                config.model.init_checkpoint = "best" if args.init_from else "last"
                config.pruning.start_epoch, config.pruning.sparsity_steps = 0, tuple(steps)
                config.train.epochs = len(steps)
                network = train.train_and_evaluate(config, folder, method_of)["model_size"]
                rows = report.read_metrics(folder)
                metrics = {f"{level:g}": rows[i]["eval_metric"] for level, i in last_of.items()}
                timed = rows[1:] or rows  # the first epoch compiles
                seconds = statistics.median(row["seconds"] for row in timed) / rows[0]["step"]
                found[name].append({**metrics, "step_ms": 1000 * seconds})
                harness.report(
                    benchmark="credit",
                    task=config.data.task,
                    network=network,
                    variant=name,
                    ablate=args.ablate,
                    seed=seed,
                    dense=dense,
                    structure=config.pruning.structure,
                    teacher=bool(args.teacher),
                    examples=args.examples,
                    batch_size=config.train.batch_size,
                    learning_rate=config.train.learning_rate,
                    metrics=metrics,
                    step_ms=round(1000 * seconds, 2),
                )
    for name, seeds in found.items():
        mean = {key: round(statistics.mean(row[key] for row in seeds), 4) for key in seeds[0]}
        print(json.dumps({"benchmark": "credit", "variant": name, "seeds": len(seeds), "mean": mean}), flush=True)


if __name__ == "__main__":
    main()
