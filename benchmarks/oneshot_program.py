"""Accuracy of a run's network pruned in one shot: methods, sparsities, with and without the correction, and units.

    python -m benchmarks.oneshot_program RUN_DIR --out=LINES.jsonl [--examples=128] [--seeds 0]

RUN_DIR is a finished dense run; its own data is pruned on and evaluated. A line is a network, and those that are in the
file already are not measured again.
"""

import argparse
import itertools
from pathlib import Path

import jax

from benchmarks import harness
from prune_jax.models import units
from prune_jax.pruning import gates as gates_lib
from prune_jax.run import evaluate, oneshot
from prune_jax.run import state as state_lib


def cases(seeds):
    """(method, structure, sparsity, target, correct, seed) of each line."""
    methods = ("sparsegpt", "wanda", "magnitude")
    for seed in seeds:
        for correct, sparsity, method in itertools.product((False, True), (0.5, 0.7, 0.6, 0.8), methods):
            yield method, "encoder", sparsity, "units", correct, seed
            if method == "magnitude" and sparsity == 0.7 and not correct:
                for share, target in itertools.product((0.3, 0.5), ("flops", "units")):
                    yield "sparsegpt", "head+ffn", share, target, False, seed
        for method in methods:
            yield method, "2:4", 0.5, "units", False, seed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    config, dataset, model, params, gates = harness.opened(args.run)
    columns = evaluate.evaluator(config, model, dataset)

    def measure(params, gates):
        return columns(params, gates)["eval_metric"]

    done = harness.read(args.out)
    known = [tuple(line[name] for name in _KEY) for line in done if line["examples"] == args.examples]
    dense = next((line["dense"] for line in done), None) or measure(params, gates)
    for case in cases(args.seeds):
        if case in known:
            continue
        method, structure, sparsity, target, correct, seed = case
        with config.unlocked():
            config.pruning.structure, config.train.seed = structure, seed
            config.oneshot.method, config.oneshot.sparsity, config.oneshot.target = method, sparsity, target
            config.oneshot.correct, config.oneshot.examples = correct, args.examples
        shapes = units.gate_shapes(model, structure)
        plan = state_lib.make_plan(model, shapes, structure, "local")
        opened = jax.tree.map(lambda leaf: jax.numpy.ones(leaf.shape, bool), shapes)
        new, own, entry = oneshot.prune(config, model, plan, params, opened, dataset, print)
        line = dict(zip(_KEY, case, strict=True)) | {"examples": args.examples, "dense": dense}
        line |= {"metric": measure(new, own), "closed": gates_lib.sparsity(own), "seconds": entry["seconds"]}
        if structure == "head+ffn":
            graph = units.trace(model, 8, 32)
            cut = graph.dropped(new, own)
            line["flops"] = 1 - graph.cost(cut=cut).flops / graph.cost().flops
        harness.add(args.out, **line, error=entry["error"])


_KEY = ("method", "structure", "sparsity", "target", "correct", "seed")

if __name__ == "__main__":
    main()
