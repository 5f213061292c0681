"""A forward pass of the dense, the gated and the shrunk network, here (jitted) and by transformers in torch.

    python -m benchmarks.inference        (needs torch)

Float32, length 64, no padding, the 6x384 geometry. Heads and feed-forward columns are closed at random, the same share
of both in every layer, until the given share of the encoder's weights is gone: the time does not depend on which.
`gated` carries its gates as an input, `merged` is the same network with the zeros in its kernels (what an unstructured
export costs), `shrunk` is what export --shrink writes. `speedup` is dense over shrunk, end to end, embeddings and
head included.
"""

import argparse
import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
import torch
import transformers

from benchmarks import harness
from prune_jax import files
from prune_jax.export import checkpoint, shrunk_bert
from prune_jax.models import Bert, BertConfig
from prune_jax.pruning.merge import merge

GEOMETRY = "6x384"


def close_at_random(model, gates, share: float):
    """The gates with round(share * units) heads and columns closed in every layer."""
    layers, _, heads, d_ff = harness.GEOMETRIES[GEOMETRY]
    rng = np.random.default_rng(0)

    def some_open(count):
        return rng.permutation(count) >= round(share * count)

    opened = {f"layer_{i}": {"heads": some_open(heads), "ffn": some_open(d_ff)} for i in range(layers)}
    return harness.make_plan(model, "head+ffn").units.spread(gates, opened)


def torch_model(params, gates, cfg: BertConfig, shrunk: bool):
    """The network as transformers loads it from an export."""
    with tempfile.TemporaryDirectory() as folder:
        config_json, tensors, _ = checkpoint.describe(params, gates, cfg, ("negative", "positive"), shrunk)
        files.write_json(Path(folder) / "config.json", config_json)
        safetensors.numpy.save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        code = Path(checkpoint.__file__).parent / "modeling_shrunk_bert.py"
        (Path(folder) / code.name).write_text(code.read_text())
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        return load(folder, trust_remote_code=True).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.75])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    args = parser.parse_args()
    layers, d_model, heads, d_ff = harness.GEOMETRIES[GEOMETRY]
    model = harness.make_model(GEOMETRY)
    variables = jax.jit(model.init)(jax.random.key(0), *model.example_inputs())
    params, opened = jax.device_get((variables["params"], variables["gates"]))
    for share in args.shares:
        gates = jax.device_get(close_at_random(model, opened, share))
        merged = merge(params, gates)
        small, sizes, _ = shrunk_bert.shrink(model, merged)
        small_model = Bert(BertConfig(harness.VOCABULARY, layers, d_model, heads, d_ff, **sizes))
        networks = {
            "dense": (model, {"params": params}),
            "gated": (model, {"params": params, "gates": gates}),
            "merged": (model, {"params": merged}),
            "shrunk": (small_model, {"params": small}),
        }
        theirs = {
            "torch_dense": torch_model(params, opened, model.cfg, False),
            "torch_merged": torch_model(params, gates, model.cfg, False),
            "torch_shrunk": torch_model(params, gates, model.cfg, True),
        }

        def encoder(tree):
            return sum(x.size for name in tree if name.startswith("layer_") for x in jax.tree.leaves(tree[name]))

        for rows in args.batches:
            batch = harness.make_batch(rows)
            inputs = [batch[name] for name in model.inputs]
            named = {name: torch.from_numpy(np.array(batch[name])).long() for name in model.inputs}
            cases = {
                name: functools.partial(jax.jit(net.apply), jax.device_put(tree), *inputs)
                for name, (net, tree) in networks.items()
            }

            def run(net, named=named):
                with torch.inference_mode():
                    return net(**named).logits.numpy()

            cases |= {name: functools.partial(run, net) for name, net in theirs.items()}
            gated, shrunk, torch_shrunk = (np.asarray(cases[n]()) for n in ("gated", "shrunk", "torch_shrunk"))
            seconds = harness.interleaved(cases, args.repeats)
            harness.report(
                benchmark="inference",
                geometry=GEOMETRY,
                batch=f"{rows}x64",
                removed=round(1 - encoder(small) / encoder(params), 3),
                milliseconds={name: round(1000 * value, 2) for name, value in seconds.items()},
                speedup=round(seconds["dense"] / seconds["shrunk"], 2),
                torch_speedup=round(seconds["torch_dense"] / seconds["torch_shrunk"], 2),
                largest_difference=float(max(np.abs(gated - x).max() for x in (shrunk, torch_shrunk))),
                torch=torch.__version__,
                transformers=transformers.__version__,
                torch_threads=torch.get_num_threads(),
            )


if __name__ == "__main__":
    main()
