"""What cutting makes of this package's BERT on this machine: how fast it is cut, and how fast the small one runs.

    python -m benchmarks.program_cut

Float32, length 64, 6x384, random weights: the time does not depend on which units close. `heads_ffn` closes three
quarters of the heads and columns of each layer, `all` five eighths of them, four of six layers and three fifths of the
residual width, `shallow` half of them, five of six layers and 42 % of the residual width. Dense and cut take turns. The
last line traces and shrinks a BERT of the base size, without compiling.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from prune_jax.graph import cutting
from prune_jax.models import Bert, BertConfig, units
from prune_jax.pruning import trees

CASES = {  # structure, closed shares of heads and columns, of the residual width, closed layers
    "heads_ffn": ("head+ffn", 0.75, 0.0, 0),
    "all": ("head+ffn+hidden+layer", 0.625, 0.6, 4),
    "shallow": ("head+ffn+hidden+layer", 0.5, 0.42, 5),
}


def closed(model: Bert, structure: str, share: float, width: float, layers: int):
    """Gates with the first share of the heads and columns closed, of the residual width, and so many layers."""
    shapes = trees.by_name(units.gate_shapes(model, structure))
    gates = {name: np.ones(leaf.shape, bool) for name, leaf in shapes.items()}
    for group in units.chosen(model, structure):
        for member in group.members:
            gone = member.units < round((width if group.kind == "hidden" else share) * group.size)
            if group.kind == "layer":
                gone = np.full(gone.shape, int(group.name.split(".")[0].removeprefix("layer_")) < layers)
            np.moveaxis(gates[member.name], member.axis, 0)[gone] = False
    return trees.nested(gates, "/")


def random_params(model: Bert):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), shapes)


def encoder(tree) -> int:
    return sum(leaf.size for name, leaf in trees.by_name(tree).items() if name.startswith("layer_"))


def compare(case: str, rows: int, repeats: int) -> None:
    """Times the dense and the cut network on a batch."""
    model = harness.make_model("6x384", closable=True)
    params = random_params(model)
    small, small_params, gates = units.opened(model, params, closed(model, *CASES[case]))
    small_params, small_fn = cutting.shrink(units.trace(small), small_params, gates)
    whole = units.opened(model, params, {})[0]
    batch = harness.make_batch(rows)
    inputs = [batch[name] for name in model.inputs]
    dense, cut = jax.jit(lambda params, *x: whole.apply({"params": params}, *x)), jax.jit(small_fn)
    cases = {
        "dense": functools.partial(dense, jax.device_put(params), *inputs),
        "cut": functools.partial(cut, jax.device_put(small_params), *inputs),
    }
    seconds = harness.interleaved(cases, repeats)
    harness.report(
        benchmark="program_cut",
        case=case,
        batch=f"{rows}x64",
        removed=round(1 - encoder(small_params) / encoder(params), 3),
        milliseconds={name: round(1000 * value, 2) for name, value in seconds.items()},
        speedup=round(seconds["dense"] / seconds["cut"], 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    for case in CASES:
        for rows in (1, 32):
            compare(case, rows, repeats)
    base = Bert(BertConfig(30522, 12, 768, 12, 3072))
    params, gates = random_params(base), closed(base, "head+ffn", 0.5, 0.0, 0)
    units.trace.cache_clear()
    start = time.perf_counter()
    graph = units.trace(base)
    traced = time.perf_counter()
    jax.block_until_ready(cutting.shrink(graph, jax.tree.map(jnp.asarray, params), gates)[0])
    harness.report(
        benchmark="program_cut", case="base", trace_s=round(traced - start, 2),
        shrink_s=round(time.perf_counter() - traced, 2),
    )  # fmt: skip


if __name__ == "__main__":
    main()
