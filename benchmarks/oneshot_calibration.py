"""What decides the accuracy of a network pruned in one shot: examples, their padding, dampening, the method.

    python -m benchmarks.oneshot_calibration RUN_DIR --out=LINES.jsonl [--examples=128] [--method=sparsegpt]
        [--sparsity=0.5] [--dampening=0.01] [--padding] [--seeds 0]

RUN_DIR is a finished dense run of a BERT; its own training data is pruned on, and its evaluation data evaluated. The
encoder's single weights close. A line is a network, and those that are in the file already are not measured again.
"""

import argparse
import json
import platform
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import prune_jax as pj
from prune_jax import config as config_lib
from prune_jax import data, models
from prune_jax.models import units
from prune_jax.oneshot import wanda
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.run import evaluate
from prune_jax.run import folder as runs
from prune_jax.run import state as state_lib

ROWS, LENGTHS = 64, (16, 32, 64)  # of a batch


def batches(model, split, examples, seed):
    """(the inputs of calls on so many training examples, their masks)."""
    rows = np.random.default_rng((seed, 0)).permutation(len(split))[:examples]
    rows = rows[np.argsort(split.lengths[rows], kind="stable")]
    made, masks = [], []
    for shorter, length in zip((0, *LENGTHS), LENGTHS, strict=False):
        own = rows[(split.lengths[rows] > shorter) & (split.lengths[rows] <= length)]
        for part in (own[at : at + ROWS] for at in range(0, len(own), ROWS)):
            batch = split.batch(part, length, len(part) if examples <= 2 * ROWS else ROWS)
            made.append(tuple(jnp.asarray(batch[name]) for name in model.inputs))
            masks.append(batch["attention_mask"] * (batch["weights"][:, None] > 0))
    return made, masks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--method", choices=("sparsegpt", "wanda", "magnitude"), default="sparsegpt")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--dampening", type=float, default=0.01, help="of sparsegpt")
    parser.add_argument("--padding", action="store_true", help="padding counts as input")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    saved, params, gates = runs.load(args.run, "last")
    saved = config_lib.completed(saved)
    saved.model.init_from = ""
    config = config_lib.resolve(saved, {})[0]
    dataset = data.load(data.DataOptions(**config.data), 1)
    model = models.create(config, dataset.task, config.model.vocab_size or dataset.vocab_size)
    measure = evaluate.evaluator(config, model, dataset)
    plan = state_lib.make_plan(model, units.gate_shapes(model, "encoder"), "encoder", "local")
    covered = {name for part in plan.parts for name in part.names}
    rules = {
        f"^{re.escape(name)}$": pj.KEEP
        for name, leaf in trees.by_name(params).items()
        if gates_lib.is_kernel(name, leaf) and name not in covered
    }
    method = {
        "sparsegpt": lambda: pj.sparsegpt(dampening=args.dampening),
        "wanda": pj.wanda,
        "magnitude": wanda.magnitude,
    }[args.method]()
    for seed in args.seeds:
        case = {name: getattr(args, name) for name in ("examples", "method", "sparsity", "dampening", "padding")}
        case |= {"seed": seed}
        if any(case.items() <= line.items() for line in done):
            continue
        made, masks = batches(model, dataset.train, args.examples, seed)
        told = []
        new, _ = pj.oneshot(
            lambda params, *inputs: model.apply({"params": params}, *inputs),
            params,
            made,
            method,
            sparsity=args.sparsity,
            rules=rules,
            weights=None if args.padding else masks,
            progress=told.append,
        )
        columns = measure(new, gates)
        line = case | {"metric": columns["eval_metric"], "loss": columns["eval_loss"]}
        line |= {"tokens": int(sum(mask.sum() for mask in masks)), "places": int(sum(mask.size for mask in masks))}
        line |= {"mean_error": float(np.mean([one.error for one in told])), "seconds": round(told[-1].seconds, 1)}
        line |= {"machine": platform.processor() or platform.machine()}
        with open(args.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
