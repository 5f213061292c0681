"""A run on a mesh of devices: the numbers of one device, each device with its parts alone, and other meshes later."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, devices

from benchmarks import scaling
from configs import common
from prune_jax import config as config_lib
from prune_jax.errors import UserError
from prune_jax.run import mesh

EIGHT = """
import json, re, sys
import jax, numpy as np
from configs import common
from prune_jax import config as config_lib, methods
from prune_jax.models.bert import Bert, BertConfig
from prune_jax.pruning import packed, trees
from prune_jax.run import checkpoint, mesh, optim, state as state_lib

names, folder = json.loads(sys.argv[1]), sys.argv[2]
config = common.get_config()
config.model.size, config.spt.epsilon = "tiny", 0.2
model = Bert(BertConfig(vocab_size=44, num_layers=1, d_model=16, num_heads=2, d_ff=32, max_positions=8,
                        dropout=0.0))
rng = np.random.default_rng(0)
ids = rng.integers(1, 44, (16, 8)).astype(np.int32)
batch = {"input_ids": ids, "token_type_ids": 0 * ids, "attention_mask": 0 * ids + 1}
batch |= {"labels": (ids[:, 0] % 2).astype(np.int32), "weights": np.ones(16, np.float32)}

def layout(data, fsdp, tensor):
    shape = (data, fsdp, tensor)
    kinds = (jax.sharding.AxisType.Auto,) * 3
    return mesh.Layout(jax.make_mesh(shape, mesh.AXES, kinds, devices=jax.devices()[: int(np.prod(shape))]))

def run(method, structure, on, out, given=None):
    optimizer = optim.create(0.01, 1.0, tuple(method.rates), method.plain)
    from prune_jax.models import units
    plan = state_lib.make_plan(model, units.gate_shapes(model, structure), structure, "global")
    init = lambda key: state_lib.init_state(model, method, optimizer, plan, key)
    shapes = jax.eval_shape(init, jax.random.key(0))
    at = on.of(shapes, model, shapes.params)
    if given is None:
        given = jax.jit(init, out_shardings=at)(jax.random.key(0))
    state = jax.tree.map(lambda x, s: jax.device_put(jax.numpy.copy(x), s), given, at)
    gather = on.gather(model, shapes.params)
    step = jax.jit(state_lib.make_train_step(model, method, optimizer, plan, gather=gather),
                   donate_argnums=0, out_shardings=(at, on.whole))
    prune = state_lib.make_prune_step(method, plan)
    changed = jax.eval_shape(prune, shapes, np.float32(0), np.bool_(True))[0]
    prune = jax.jit(prune, out_shardings=({k: getattr(at, k) for k in changed}, on.whole))
    rows = jax.device_put(batch, on.rows)
    rates = {"weights": np.float32(1e-2)} | {k: np.float32(v) for k, v in method.rates.items()}
    hyper = {k: np.float32(v) for k, v in {**method.hyper, "num_examples": 16, "num_steps": 3}.items()}
    compiled = step.lower(state, rows, rates, hyper).compile()
    losses = []
    for _ in range(2):
        state, loss = compiled(state, rows, rates, hyper)
        losses.append(float(loss))
    changes, _ = prune(state, np.float32(0.5), np.bool_(True))
    state = state.replace(**changes)
    state, loss = compiled(state, rows, rates, hyper)
    out |= {"losses": [*losses, float(loss)], "text": compiled.as_text()}
    out["split"] = lies(state, at)
    held = {n: x.addressable_shards[0].data.size / x.size for n, x in trees.by_name(state).items() if x.size}
    out["held"] = {n: share for n, share in held.items() if n.endswith("kernel")}
    return state, at, given

def lies(tree, at):
    return all(x.sharding.is_equivalent_to(s, x.ndim) for x, s in zip(jax.tree.leaves(tree), jax.tree.leaves(at)))

def numbers(s):
    return {n: np.asarray(x, np.float64) for n, x in trees.by_name((s.params, s.opt_state, s.method)).items()}

found = {}
for case in names:
    name, structure, passes = case.split()
    config.pruning.method, config.pruning.structure = name, structure
    config.spt.explorations = config.spt.chunk = int(passes)  # under vmap
    method = methods.from_config(config_lib.resolve(config)[0])
    one, eight = {}, {}
    state, _, first = run(method, structure, layout(1, 1, 1), one)
    sharded, at, _ = run(method, structure, layout(2, 2, 2), eight, first)
    ours, theirs = numbers(state), numbers(sharded)
    pairs = zip(*(jax.tree.leaves(packed.unpack(tree)) for tree in (state.gates, sharded.gates)))
    gates = [(np.asarray(a), np.asarray(b)) for a, b in pairs]
    found[case] = {
        "losses": [one["losses"], eight["losses"]],
        "apart": max(float(np.max(np.abs(ours[n] - theirs[n]) / (1e-3 + np.abs(ours[n])), initial=0)) for n in ours),
        "gates": [int((a != b).sum()) for a, b in gates],
        "closed": sum(int((~a).sum()) for a, _ in gates) / sum(a.size for a, _ in gates),
        "split": eight["split"], "held": eight["held"],
        "collectives": sorted(set(re.findall(r"(all-gather|all-reduce|reduce-scatter|all-to-all)", eight["text"]))),
    }

saved = checkpoint.Checkpoints(folder)
saved.save_last(3, sharded, {})
saved.wait()
elsewhere = layout(1, 4, 1)
shapes = jax.eval_shape(lambda: sharded)
there = elsewhere.of(shapes, model, shapes.params)
abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, there)
restored, _ = saved.restore_last(abstract)
raw = lambda x: np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
found["restored"] = {
    "same": all((raw(a) == raw(b)).all() for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(restored))),
    "moved": lies(restored, there),
    "differs": not lies(restored, at),
}
saved.close()
print(json.dumps(found))
"""

CASES = ("spt head+ffn 1",)  # method, structure, passes of exploration
MORE = ("movement unstructured 1", "sws unstructured 1")


def on_eight_devices(cases, folder):
    environment = os.environ | devices(8)
    command = [sys.executable, "-c", EIGHT, json.dumps(cases), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rematerialization" not in done.stderr, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(case, found):
    one, eight = found["losses"]
    assert eight == pytest.approx(one, rel=1e-5) and len(set(one)) == 3
    assert found["apart"] < 0.02 and sum(found["gates"]) == 0
    if case != "sws unstructured 1":
        assert found["closed"] == pytest.approx(0.5, abs=0.15 if "head" in case else 0.02)
    assert found["split"]
    shares = {share for name, share in found["held"].items() if "layer_0" in name}
    assert shares == {1 / 4}  # over fsdp 2 and tensor 2; the gates, the moments and a method's scores, too
    assert {"all-gather", "all-reduce"} <= set(found["collectives"])


@pytest.mark.slow
def test_a_mesh_gives_the_numbers_of_one_device_and_its_checkpoint_moves_to_another(tmp_path):
    found = on_eight_devices(CASES, tmp_path)
    for case in CASES:
        check(case, found[case])
    assert found["restored"] == {"same": True, "moved": True, "differs": True}


@pytest.mark.slow
def test_a_mesh_gives_the_numbers_of_one_device_by_other_methods(tmp_path):
    found = on_eight_devices(MORE, tmp_path)
    for case in MORE:
        check(case, found[case])


@pytest.mark.parametrize(
    ("given", "devices", "expected"),
    [
        ((-1, 1, 1), 1, (1, 1, 1)),
        ((-1, 1, 1), 8, (8, 1, 1)),
        ((2, -1, 2), 8, (2, 2, 2)),
        ((1, 4, 2), 8, (1, 4, 2)),
    ],
)
def test_the_axes_make_up_the_devices(given, devices, expected):
    filled = mesh.sizes(dict(zip(mesh.AXES, given, strict=True)), devices)
    assert tuple(filled.values()) == expected


@pytest.mark.parametrize(
    ("given", "allowed"), [((2, 1, 1), "is 8"), ((-1, 3, 1), "divides 8"), ((-1, 16, 1), "divides 8")]
)
def test_a_mesh_that_does_not_fit_the_devices(given, allowed):
    shown = "data={}, fsdp={}, tensor={}".format(*given)
    with pytest.raises(UserError, match=re.escape(f"config.mesh is {shown}; allowed: axes whose product {allowed}")):
        mesh.sizes(dict(zip(mesh.AXES, given, strict=True)), 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh.fsdp": 0}, "config.mesh.fsdp is 0; allowed: 1 and more"),
        ({"mesh.fsdp": -1}, "config.mesh.fsdp is -1; allowed: 1 and more while config.mesh.data is -1, too"),
    ],
)
def test_a_mesh_that_no_devices_fit(changes, message):
    config = common.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        config_lib.resolve(config)


def test_the_collectives_of_a_program_are_counted():
    text = """
  %all-reduce.7 = (f32[4,2]{1,0}, f32[]) all-reduce(%a, %b), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %all-gather.3 = bf16[8,16]{1,0} all-gather(%c), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %reduce-scatter = f32[2,16]{1,0} reduce-scatter(%d), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}
  %all-reduce.8 = f32[] all-reduce(%e), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}, to_apply=%add
  %fusion = f32[2]{0} fusion(%all-reduce.7), kind=kLoop
"""
    assert scaling.collectives(text, 8) == {
        "all-gather over 4": {"count": 1, "bytes": 192},  # three quarters of 256
        "all-reduce over 2": {"count": 1, "bytes": 4},
        "all-reduce over 8": {"count": 1, "bytes": 63},  # twice seven eighths of 36
        "reduce-scatter over 2": {"count": 1, "bytes": 128},  # half of 256
    }
