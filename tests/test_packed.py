"""Gates at rest: a bit each, the same gates again, and none the wiser in the states that hold them."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, devices
from flax import serialization

import prune_jax as pj
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed

SHAPES = [(), (1,), (8,), (13,), (3, 5), (16, 7), (7, 16), (64, 1), (0, 4), (3, 3, 8, 4), (2, 5, 9), (8, 8, 8)]


def random_gates(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape) < 0.5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_gates_are_the_same_again(shape):
    gates = {"kernel": random_gates(shape), "bias": None}
    stored = packed.pack(gates)
    assert stored["kernel"].shape == shape and stored["kernel"].size == gates["kernel"].size
    assert stored["kernel"].words.dtype == jnp.uint8 and stored["bias"] is None
    again = packed.unpack(stored)
    assert again["kernel"].dtype == bool and again["bias"] is None
    np.testing.assert_array_equal(again["kernel"], gates["kernel"])
    np.testing.assert_array_equal(packed.unpack(gates)["kernel"], gates["kernel"])  # boolean ones stay
    np.testing.assert_array_equal(packed.pack(stored)["kernel"].words, stored["kernel"].words)
    assert gates_lib.count(stored) == gates_lib.count(gates) and gates_lib.sparsity(stored) == gates_lib.sparsity(gates)
    assert gates_lib.layer_sparsity(stored) == gates_lib.layer_sparsity(gates)


def test_flax_writes_a_state_to_bytes_and_reads_those_of_earlier_versions():
    gates = {"kernel": random_gates((9, 3)), "bias": None}
    stored = packed.pack(gates)
    target = packed.pack({"kernel": jnp.ones((9, 3), bool), "bias": None})
    for written in (stored, gates):
        again = serialization.from_bytes(target, serialization.to_bytes(written))
        np.testing.assert_array_equal(again["kernel"].words, stored["kernel"].words)


def test_eight_gates_share_a_byte_and_bits_beyond_the_end_are_0():
    kernel = np.zeros((10, 2), bool)
    kernel[[0, 3, 9], 0] = kernel[8, 1] = True
    np.testing.assert_array_equal(packed.pack(kernel).words, [[1 + 8, 0], [2, 1]])
    assert packed.pack(np.ones((384, 1536), bool)).words.nbytes == 384 * 1536 // 8
    assert packed.pack(np.ones((3, 3, 64, 128), bool)).words.nbytes == 3 * 3 * 64 * 128 // 8


def test_states_that_are_stacked_are_unpacked_as_they_lie():
    gates = random_gates((4, 16, 7))
    stacked = jax.vmap(packed.pack)(gates)
    assert stacked.shape == (16, 7)
    np.testing.assert_array_equal(packed.unpack(stacked), gates)
    np.testing.assert_array_equal(jax.vmap(packed.unpack)(stacked), gates)
    np.testing.assert_array_equal(packed.unpack(jax.tree.map(lambda x: x[2], stacked)), gates[2])


@pytest.mark.parametrize(("method", "bytes_per_weight"), [
    (pj.magnitude(), 0.125), (pj.sensitivity(), 4.125), (pj.movement(), 4.125),
    (pj.spt(epsilon=0.1, explorations=1), 4.25),
], ids=lambda x: getattr(x, "name", ""))  # fmt: skip
def test_what_a_weight_costs_at_rest_beyond_adam(method, bytes_per_weight):
    """A bit per gate, and what the method keeps: scores of four bytes, and whether SPT has closed a weight before."""
    params = {"a": {"kernel": jnp.ones((256, 512))}, "b": {"kernel": jnp.ones((512, 256))}}
    optimizer = optax.adam(1e-3)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    beyond = size(pj.prune(optimizer, method, pj.constant(0.5)).init(params)) - size(optimizer.init(params))
    assert beyond / (2 * 256 * 512) == pytest.approx(bytes_per_weight, abs=0.01)


def test_a_state_of_a_small_network_is_packed_too():
    params = {"a": jnp.ones((16, 6)), "b": jnp.ones((6, 16))}
    graph = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((2, 16)))
    tx = pj.prune(optax.adam(1e-2), pj.magnitude(), pj.constant(0.5), structure="auto", groups=graph)
    grads = jax.tree.map(lambda leaf: 0.1 * random_gates(leaf.shape).astype(leaf.dtype), params)
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    small_params, _ = pj.shrink(graph, params, pj.gates(state))
    small_state = pj.shrink_like(graph, graph.dropped(params, pj.gates(state)), state)
    gates = pj.gates(small_state)
    assert gates["a"].shape == small_params["a"].shape == (16, 3)
    assert all(gate.all() for gate in gates.values()) and packed.is_packed(small_state.gates["a"])


ON_EIGHT = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from prune_jax.pruning import packed

gate = np.random.default_rng(0).random((24, 40)) < 0.5
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), (kind,) * 2)
    at = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    for axes in (("fsdp",), (None, "fsdp"), ("tensor",), (("fsdp", "tensor"),)):
        stored = packed.pack(jax.device_put(gate, at(*axes)))
        words, parts = stored.words, at(*axes).shard_shape(gate.shape)
        assert stored.axis == (-1 if axes[0] else -2)  # the one that is whole
        assert words.sharding.shard_shape(words.shape)[len(axes) - 1] == parts[len(axes) - 1]
        np.testing.assert_array_equal(packed.unpack(stored), gate)
    whole = packed.pack(jax.device_put(gate, at("fsdp", "tensor")))  # no axis is: it stays as it is
    assert not packed.is_packed(whole) and whole.sharding == at("fsdp", "tensor")
    assert packed.sharding(at("fsdp", "tensor"), (3, 40)) == at(None, "tensor")
    assert packed.sharding(at("fsdp", "tensor"), (24, 41)) == at("fsdp")
"""


def test_gates_lie_where_their_weights_do():
    ran = subprocess.run([sys.executable, "-c", ON_EIGHT], env={**os.environ, **devices(8)}, cwd=ROOT, check=False)
    assert ran.returncode == 0
