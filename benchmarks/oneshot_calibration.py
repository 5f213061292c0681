"""What decides the accuracy of a network pruned in one shot: examples, their padding, dampening, the method.

    python -m benchmarks.oneshot_calibration RUN_DIR --out=LINES.jsonl [--examples=128] [--method=sparsegpt]
        [--sparsity=0.5] [--scope=global] [--structure=head+ffn --target=flops] [--correct] [--dampening=0.01]
        [--padding] [--seeds 0]

RUN_DIR is a finished dense run of a BERT; its own training data is pruned on, and its evaluation data evaluated. The
encoder's single weights close, or units of its groups. A line is a network, and those that are in the file already are
not measured again. Its `held_metric` is of 4,096 training examples that nothing is pruned on: settings are chosen by
those.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import prune_jax as pj
from benchmarks import harness
from prune_jax.models import units
from prune_jax.run import evaluate, oneshot
from prune_jax.run import state as state_lib

ROWS, LENGTHS = 64, (16, 32, 64)  # of a batch
HELD = 4096


def held_rows(split):
    """The training examples that nothing is pruned on."""
    return np.random.default_rng((0, 0)).permutation(len(split))[-HELD:]


def batches(model, split, examples, seed):
    """(the inputs of calls on so many training examples, their masks)."""
    rows = np.random.default_rng((seed, 0)).permutation(len(split))
    rows = rows[~np.isin(rows, held_rows(split))][:examples]
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
    parser.add_argument("--scope", choices=("local", "global"), default="local")
    parser.add_argument("--structure", default="encoder", help="encoder, or groups such as head+ffn")
    parser.add_argument("--target", choices=("units", "flops"), default="units")
    parser.add_argument("--correct", action="store_true", help="solve against the dense network's outputs")
    parser.add_argument("--padding", action="store_true", help="padding counts as input")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    done = harness.read(args.out)
    config, dataset, model, params, gates = harness.opened(args.run)
    held = dataset.train.take(held_rows(dataset.train))
    dataset = dataset._replace(evals=dataset.evals | {"held": held})
    measure = evaluate.evaluator(config, model, dataset)
    dense, on_held = measure(params, gates), f"eval_{dataset.task.metrics[0]}_held"
    plan = state_lib.make_plan(model, units.gate_shapes(model, "encoder"), "encoder", "local")
    groups = units.chosen(model, args.structure)
    rules = {} if groups else oneshot.kept(params, plan)
    with config.unlocked():
        config.sparsegpt.dampening = args.dampening
    method = oneshot.method(config, args.method)
    for seed in args.seeds:
        names = ("examples", "method", "sparsity", "scope", "correct", "dampening", "padding")
        case = {name: getattr(args, name) for name in names}
        case |= {"seed": seed} | ({"structure": args.structure, "target": args.target} if groups else {})
        if any(case.items() <= line.items() and ("structure" in line) == bool(groups) for line in done):
            continue
        made, masks = batches(model, dataset.train, args.examples, seed)
        told = []
        new, closed = pj.oneshot(
            lambda params, *inputs: model.apply({"params": params}, *inputs),
            params,
            made,
            method,
            sparsity=args.sparsity,
            structure=groups or "unstructured",
            scope=args.scope,
            target=args.target,
            rules=rules,
            correct=args.correct,
            weights=None if args.padding else masks,
            progress=told.append,
        )
        columns = measure(new, gates)
        line = case | {"metric": columns["eval_metric"], "loss": columns["eval_loss"], "dense": dense["eval_metric"]}
        line |= {"held_metric": columns[on_held], "held_dense": dense[on_held], "held_loss": columns["eval_loss_held"]}
        line |= {"tokens": int(sum(mask.sum() for mask in masks)), "places": int(sum(mask.size for mask in masks))}
        line |= {"closed": round(float(pj.sparsity(closed)), 4)}
        line |= {"mean_error": float(np.mean([one.error for one in told])), "seconds": round(told[-1].seconds, 1)}
        harness.add(args.out, **line)


if __name__ == "__main__":
    main()
