"""Networks read as graphs: what each offers, what pins the rest, and that cut they compute what they did gated."""

import collections
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prune_jax as pj
from benchmarks import graph_table
from benchmarks.graph_networks import Network
from benchmarks.looped_networks import NETWORKS
from benchmarks.random_networks import FAST
from prune_jax.pruning import trees


class Offer(NamedTuple):
    """kind -> how many groups can be cut; reason -> how many cannot; those whose cutting changes the function."""

    kinds: dict[str, int]
    pins: dict[str, int]
    inexact: tuple[str, ...] = ()


ENDS = {"input 0": 1, "the output": 1}
SPACE = "the space of a convolution (conv_general_dilated)"
BLOCKS = {"heads": 2, "depth": 4, "hidden": 1, "columns": 2}  # two blocks of a transformer
OFFERS = {
    "bert": Offer({"columns": 3, "hidden": 1, "heads": 2, "depth": 4}, {"the output": 1}),
    "lenet_300_100": Offer({"columns": 2}, {"the output": 1, "input 0": 2}),
    "lenet5_caffe": Offer({"columns": 1, "channels": 2}, {"the output": 1, SPACE: 2}),
    "decoder": Offer({"hidden": 1, "heads": 4, "depth": 4, "columns": 2}, {"gather chooses indices of it": 1}),
    "nnx_transformer": Offer(BLOCKS, ENDS),
    "linen_transformer": Offer(BLOCKS, ENDS),
    "slow_variance": Offer(BLOCKS, ENDS, ("hidden",)),
    "vit": Offer(BLOCKS, ENDS),
    "mlp_mixer": Offer({"hidden": 1, "columns": 4}, ENDS | {SPACE: 2}, ("hidden",)),
    "llama": Offer({"hidden": 1, "columns": 2, "heads": 4, "depth": 4}, {"gather chooses indices of it": 1}),
    "llama_interleaved": Offer(
        {"hidden": 1, "columns": 2, "heads": 4, "depth": 4},
        {"gather chooses indices of it": 1, "slice strides over it": 4},
    ),
    "llama_scanned": Offer({"hidden": 1, "columns": 1, "heads": 2, "depth": 2}, {"gather chooses indices of it": 1}),
    "resnet18": Offer({"channels": 13}, ENDS),
    "resnet50": Offer({"channels": 17}, ENDS),
    "mobilenet": Offer({"channels": 8}, ENDS),
    "unet": Offer({"channels": 7}, ENDS),
    "conv_autoencoder": Offer({"columns": 1, "channels": 4}, ENDS | {SPACE: 4}),
    "densenet": Offer({"channels": 5}, ENDS),
    "groupnorm": Offer({"channels": 3}, ENDS),
    "squeeze_excite": Offer({"channels": 3}, ENDS),
    "gru": Offer({"hidden": 1}, ENDS),
    "lstm_reversed": Offer({"hidden": 1}, ENDS),
    "equinox_mlp": Offer({"columns": 2}, ENDS),
    "equinox_cnn": Offer({"channels": 3}, ENDS),
    "equinox_attention": Offer({"hidden": 1, "heads": 1, "depth": 2}, ENDS),
    "fused_qkv": Offer({"heads": 1, "depth": 2, "hidden": 1}, ENDS),
    "fused_qkv_inside": Offer({"hidden": 1, "heads": 2, "depth": 3}, ENDS),
    "assorted": Offer({"hidden": 1, "columns": 2}, {"input 0/x": 1, "output logits": 1}),
    "control": Offer({"hidden": 1, "columns": 2}, ENDS),
    "dropout": Offer({"columns": 2}, ENDS),
    "mixture_of_experts": Offer({"columns": 2, "hidden": 1}, ENDS, ("gate",)),
    "unknown_primitive": Offer({"columns": 2}, ENDS | {"the primitive cholesky is not known": 2, "fft mixes it": 1}),
    "inception": Offer({"channels": 12}, ENDS),
    "squeezenet": Offer({"channels": 7}, ENDS),
    "efficientnet": Offer({"channels": 8}, ENDS),
    "convnext": Offer({"hidden": 2, "columns": 2}, ENDS),
    "groupnorm_resnet": Offer({"channels": 5}, ENDS),
    "wavenet": Offer({"hidden": 1, "channels": 3, "columns": 2}, ENDS),
    "pixel_shuffle": Offer({"channels": 2}, {"input 0": 1, "the space of a convolution (conv_general_dilated)": 2}),
    "swin": Offer({"hidden": 1, "columns": 3, "heads": 2, "depth": 2}, ENDS),
    "perceiver": Offer({"heads": 2, "depth": 4, "hidden": 1, "columns": 1}, ENDS),
    "t5": Offer({"hidden": 1, "columns": 2, "heads": 1, "depth": 4}, {"gather chooses indices of it": 1}),
    "einsum_transformer": Offer({"hidden": 1, "columns": 2, "heads": 2, "depth": 2}, ENDS),
    "library_attention": Offer({"hidden": 1, "heads": 2, "depth": 2}, ENDS),
    "linear_attention": Offer({"hidden": 1, "heads": 1, "depth": 2}, ENDS, ("q.depth",)),
    "lstm_both_ways": Offer({"columns": 2}, ENDS),
    "state_space": Offer({"columns": 2, "hidden": 1}, ENDS),
    "siamese": Offer({"columns": 3}, ENDS),
    "switch_experts": Offer(
        {"columns": 1, "hidden": 1}, {"argmax tells an index of it": 1, "input 0": 1, "the output": 1}
    ),
    "graph_convolution": Offer({"columns": 2}, ENDS),
    "tied_autoencoder": Offer({"columns": 2}, {"input 0": 1}),
    "ensemble": Offer({"columns": 3}, ENDS),
    "weight_normalised": Offer({"columns": 4}, ENDS, ("b",)),
    "batch_statistics": Offer({"columns": 2}, ENDS),
}
# What compiles in a second: the others are compiled with -m slow.
QUICK = ("assorted", "control", "decoder", "dropout", "equinox_mlp", "fused_qkv_inside", "groupnorm", "lenet5_caffe",
         "llama_interleaved", "lstm_reversed", "mixture_of_experts", "squeeze_excite", "unknown_primitive")  # fmt: skip
HALF = {"half_precision": 2e-2}  # bfloat16
EXPORTED = ("bert", "control", "decoder", "equinox_cnn", "gru", "llama_scanned", "mixture_of_experts",
            "nnx_transformer", "resnet18", "state_space", "t5", "unet")  # fmt: skip
NO_GRADIENT = {"differential_equation"}  # jax has none of a while loop
_GRAPHS: dict[str, pj.Graph] = {}


def graph_of(name: str) -> pj.Graph:
    if name not in _GRAPHS:
        net = NETWORKS[name]()
        _GRAPHS[name] = pj.trace(net.fn, net.params, *net.inputs)
    return _GRAPHS[name]


def random_units(graph: pj.Graph, fraction: float) -> dict[str, np.ndarray]:
    """A random fraction of the units of each group that can be cut without a trace, one at least, and not all."""
    rng = np.random.default_rng(int(100 * fraction))
    return {
        name: rng.permutation(group.size)[: min(max(1, int(group.size * fraction)), group.size - 1)]
        for name, group in graph.groups.items()
        if group.prunable and group.exact
    }


def off(ours, theirs) -> float:
    """The largest difference of two trees, in parts of the largest entry of each leaf. NumPy compiles nothing."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    pairs = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in pairs]
    return max(float(np.abs(a - b).max() / (np.abs(b).max() + 1e-30)) for a, b in pairs)


def test_the_cost_of_each_kernel_before_and_after():
    """An MLP of 4 -> 8 -> 2 features over 3 examples, by hand."""
    params = {"up": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}, "down": {"kernel": jnp.ones((8, 2))}}

    def net(p, x):
        return jax.nn.relu(x @ p["up"]["kernel"] + p["up"]["bias"]) @ p["down"]["kernel"]

    graph = pj.trace(net, params, jnp.ones((3, 4)))
    gates = pj.close_groups(graph, params, {"up": [0, 5]})
    for cost, units in ((graph.cost(), 8), (graph.cost(gates), 6), (graph.cost(gates, params), 6)):
        assert dict(cost.kernels) == {
            "up/kernel": (2 * 3 * 4 * units, 4 * units, 16 * units, {}),
            "down/kernel": (2 * 3 * units * 2, units * 2, 8 * units, {}),
        }
        assert cost[:3] == (36 * units, 7 * units, 28 * units)


class Cut(NamedTuple):
    """A network with a part of the units of each group closed, and cut."""

    net: Network
    graph: pj.Graph
    gates: dict
    masked: dict
    small: dict
    fn: Callable


def cut(name: str, fraction: float) -> Cut:
    net, graph = NETWORKS[name](), graph_of(name)
    units = random_units(graph, fraction)
    gates = pj.close_groups(graph, net.params, units)
    small, small_fn = pj.shrink(graph, net.params, gates)
    dropped = graph.dropped(net.params, gates)
    assert {group: sorted(np.flatnonzero(drop)) for group, drop in dropped.items() if drop.any()} == {
        group: sorted(closed) for group, closed in units.items() if len(closed)
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(small)) == graph.cost(cut=dropped).params < graph.cost().params
    return Cut(net, graph, gates, pj.masked(net.params, gates), small, small_fn)


def compiled(fn, *args):
    return jax.jit(fn, compiler_options=FAST)(*args)


@pytest.mark.parametrize("name", OFFERS)
def test_a_network_offers_its_groups(name):
    groups = graph_of(name).groups.values()
    """Of the networks that were there first; what the others offer is the page's to say."""
    assert collections.Counter(group.kind for group in groups if group.prunable) == OFFERS[name].kinds
    assert collections.Counter(group.reason for group in groups if not group.prunable) == OFFERS[name].pins
    assert tuple(group.name for group in groups if not group.exact) == OFFERS[name].inexact
    assert all((group.inexact_because is None) == group.exact for group in groups)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_cut_a_network_computes_what_it_did_gated(name):
    found = cut(name, 0.5)
    for inputs in (found.net.inputs, found.net.others):
        wanted = compiled(found.net.fn, found.masked, *inputs)
        got = compiled(found.fn, found.small, *inputs)
        assert jax.tree.structure(got) == jax.tree.structure(wanted)
        assert off(got, wanted) < HALF.get(name, 1e-5)


def floats(tree) -> dict:
    return {n: leaf for n, leaf in trees.by_name(tree).items() if jnp.issubdtype(leaf.dtype, jnp.floating)}


def outputs_and_gradient(fn, params, inputs):
    """Of the sum of the sines of all outputs, by the weights: both in one program, since compiling takes the time."""

    def loss(weights, rest, inputs):
        out = fn(trees.replaced(rest, weights), *inputs)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(out)), out

    return compiled(jax.grad(loss, has_aux=True), floats(params), params, inputs)


def check_outputs_and_gradient(name: str) -> None:
    """On inputs of other sizes than the traced ones, with a fifth, a half or four fifths of the units closed."""
    found = cut(name, (0.2, 0.5, 0.8)[zlib.crc32(name.encode()) % 3])
    theirs, wanted = outputs_and_gradient(found.net.fn, found.masked, found.net.others)
    ours, got = outputs_and_gradient(found.fn, found.small, found.net.others)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    assert off(got, wanted) < HALF.get(name, 1e-5)
    kept = trees.by_name(
        pj.shrink_like(
            found.graph, found.graph.dropped(found.net.params, found.gates), trees.replaced(found.masked, theirs)
        )
    )
    largest = max(float(np.abs(np.asarray(leaf, np.float32)).max()) for leaf in theirs.values() if leaf.size)
    for weight, leaf in ours.items():
        tolerance = HALF.get(name, 2e-5) * largest
        np.testing.assert_allclose(leaf, kept[weight], atol=tolerance, rtol=0, err_msg=weight)


@pytest.mark.parametrize("name", ["control", "llama_interleaved", "assorted"])
def test_outputs_and_gradients_are_those_of_the_gated_network(name):
    check_outputs_and_gradient(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - NO_GRADIENT - {"control", "llama_interleaved", "assorted"}))
def test_outputs_and_gradients_of_any_network_are_those_of_the_gated_one(name):
    check_outputs_and_gradient(name)


@pytest.mark.parametrize("name", sorted(NO_GRADIENT))
def test_outputs_of_a_network_without_a_gradient_are_those_of_the_gated_one(name):
    found = cut(name, 0.5)
    wanted = compiled(found.net.fn, found.masked, *found.net.others)
    assert off(compiled(found.fn, found.small, *found.net.others), wanted) < 1e-5


def test_the_page_of_results_says_what_is_offered():
    page = (Path(__file__).resolve().parents[1] / "docs" / "results" / "graph.md").read_text(encoding="utf-8")
    assert [graph_table.row(name, graph_of(name)) for name in NETWORKS] == page.split(graph_table.HEAD + "\n")[1].split(
        "\n\n"
    )[0].splitlines()


def test_the_rows_of_the_results_are_those_of_the_graph():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "graph_table.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["network"] for row in rows] == list(NETWORKS)
    for row in rows:
        groups = graph_of(row["network"]).groups.values()
        assert [(g.name, g.kind, g.size, g.reason, g.inexact_because) for g in groups] == [
            tuple(group[key] for key in ("name", "kind", "size", "pinned_by", "changed_by")) for group in row["groups"]
        ]


def check_export(name: str) -> None:
    found = cut(name, 0.5)
    flat, treedef = jax.tree.flatten(found.small)  # modules' own trees are not jax.export's to write
    exported = jax.export.export(jax.jit(lambda leaves, *x: found.fn(jax.tree.unflatten(treedef, leaves), *x)))(
        flat, *found.net.others
    )
    again = jax.export.deserialize(bytearray(exported.serialize()))
    wanted = compiled(found.fn, found.small, *found.net.others)
    assert off(again.call(flat, *found.net.others), wanted) < HALF.get(name, 1e-5)


def test_a_cut_network_is_exported():
    check_export("lstm_reversed")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_cut_networks_of_all_kinds_are_exported(name):
    check_export(name)


def check_symbolic_export(name: str, sizes: str) -> None:
    """One exported function for inputs of any size; sizes: of the first input, as jax.export names them."""
    found = cut(name, 0.5)
    shape = jax.export.symbolic_shape(sizes)
    inputs = [jax.ShapeDtypeStruct(shape[: x.ndim], x.dtype) for x in found.net.inputs]
    exported = jax.export.export(jax.jit(found.fn))(found.small, *inputs)
    for example in (found.net.inputs, found.net.others):
        assert off(exported.call(found.small, *example), compiled(found.fn, found.small, *example)) < 1e-5


@pytest.mark.parametrize(("name", "sizes"), [("lstm_reversed", "batch, length, 4"), ("lenet5_caffe", "b, 20, 20, 1")])
def test_a_cut_network_is_exported_for_inputs_of_any_size(name, sizes):
    check_symbolic_export(name, sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"), [("bert", "b, t"), ("llama", "b, t"), ("linen_transformer", "b, t, 6"), ("gru", "b, t, 4")]
)
def test_cut_transformers_are_exported_for_texts_of_any_length(name, sizes):
    check_symbolic_export(name, sizes)
