"""Checkpoints come back bit for bit, and a save that was cut short costs nothing but itself."""

import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_train import numbers, stop_at

from prune_jax.errors import Stopped, UserError
from prune_jax.pruning import trees
from prune_jax.run.checkpoint import Checkpoints, read_network
from prune_jax.run.state import TrainState


def make_state(seed=0, width=33):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {"a": {"kernel": jax.random.normal(keys[0], (7, width)).at[0, 0].set(jnp.nan), "bias": jnp.zeros(width)}}
    method = {"trainable": {}, "state": {"half": jax.random.normal(keys[1], (5,), jnp.bfloat16)}}
    return TrainState(
        step=jnp.int32(seed),
        params=params,
        gates={"a": {"kernel": jax.random.bernoulli(keys[1], 0.5, (7, width))}},
        method=method,
        opt_state=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init({"params": params, "method": {}}),
        key=keys[2],
    )


def shapes(state):
    return jax.eval_shape(lambda: state)


def words(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()


def assert_same(found, state):
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert jax.tree.map(words, found) == jax.tree.map(words, state)


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.close()


def test_restores_bit_for_bit_after_reopening(tmp_path):
    folder = tmp_path / "checkpoints"
    first = Checkpoints(folder)
    progress = {"epoch": 1, "loss_sum": 0.1 + 0.2, "best": None, "seconds": np.float32(1.5)}
    first.save_last(10, make_state(1), progress)
    progress["epoch"] = 99  # after the call the dict is the caller's again
    first.save_best(10, make_state(2), {"epoch": 2})
    first.save_last(20, make_state(3), {"epoch": 3, "loss_sum": 0.1 + 0.2})
    first.close()
    second = Checkpoints(folder)
    state, progress = second.restore_last(shapes(make_state()))
    assert_same(state, make_state(3))
    assert progress == {"epoch": 3, "loss_sum": 0.1 + 0.2}
    second.close()
    best = make_state(2)
    assert_same(read_network(folder, "best"), (best.params, best.gates))
    assert [len(list((folder / kind).iterdir())) for kind in ("last", "best")] == [2, 1]


def test_keys_keep_their_type(checkpoints):
    state = {"rbg": jax.random.key(3, impl="rbg"), "many": jax.random.split(jax.random.key(4), 5)}
    checkpoints.save_last(1, state, {})
    found, _ = checkpoints.restore_last(shapes(state))
    assert_same(found, state)
    assert jax.tree.map(jax.random.key_impl, found) == jax.tree.map(jax.random.key_impl, state)
    draw = jax.random.uniform
    assert draw(found["rbg"]) == draw(state["rbg"]) and draw(found["many"][3]) == draw(state["many"][3])


def test_one_step_may_be_saved_twice(checkpoints):
    checkpoints.save_last(5, make_state(1), {"batch": 5})
    checkpoints.save_last(5, make_state(2), {"batch": 0})
    state, progress = checkpoints.restore_last(shapes(make_state()))
    assert_same(state, make_state(2))
    assert progress == {"batch": 0}


@functools.partial(jax.jit, donate_argnums=0)
def spoil(tree):
    return jax.tree.map(lambda x: x * 0 - 1, tree)


def test_donation_right_after_a_save_is_safe(checkpoints):
    for seed in range(5):
        values = np.random.default_rng(seed).normal(size=(4, 500_000)).astype(np.float32)
        tree = jax.block_until_ready({str(i): jnp.array(row) for i, row in enumerate(values)})
        checkpoints.save_last(seed, tree, {})
        for _ in range(3):
            tree = spoil(tree)
        found, _ = checkpoints.restore_last(shapes(tree))
        np.testing.assert_array_equal(np.stack(list(found.values())), values)
        spoiled = spoil(found)  # and what was restored may be donated too
        again, _ = checkpoints.restore_last(shapes(tree))
        np.testing.assert_array_equal(np.stack(list(again.values())), values)
        assert all(np.all(np.asarray(leaf) == -values[int(i)] * 0 - 1) for i, leaf in spoiled.items())


def test_sharding_is_that_of_the_abstract_state(checkpoints):
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    state = make_state(1)
    checkpoints.save_last(1, state, {})
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes(state))
    found, _ = checkpoints.restore_last(abstract)
    assert all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf in jax.tree.leaves(found))
    assert_same(found, state)


def test_missing_other_and_corrupt_checkpoints_are_named(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    state = make_state(1)
    with pytest.raises(UserError, match=r"there is no checkpoint in .*last"):
        checkpoints.restore_last(shapes(state))
    checkpoints.save_last(1, state, {})
    with pytest.raises(UserError, match=r"last/1 is of another model .*: 7 arrays differ"):
        checkpoints.restore_last(shapes(make_state(width=34)))
    other = shapes(state).replace(step=jax.ShapeDtypeStruct((), jnp.float32))
    with pytest.raises(UserError, match=r"1 arrays differ.*\.step: int32\[\] in the checkpoint, float32\[\] in this"):
        checkpoints.restore_last(other)
    checkpoints.close()
    for data in (folder / "last" / "1" / "state").rglob("d/*"):
        data.write_bytes(data.read_bytes()[:10])
    checkpoints = Checkpoints(folder)
    with pytest.raises(UserError, match="last/1 cannot be read"):
        checkpoints.restore_last(shapes(state))
    checkpoints.close()
    shutil.rmtree(folder / "last" / "1" / "progress")
    checkpoints = Checkpoints(folder)
    with pytest.raises(UserError, match="last/1 cannot be read"):
        checkpoints.restore_last(shapes(state))
    checkpoints.close()


def test_a_partial_save_is_ignored_and_cleaned(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    checkpoints.save_last(1, make_state(1), {"epoch": 1})
    checkpoints.close()
    partial = folder / "last" / "2.orbax-checkpoint-tmp"
    shutil.copytree(folder / "last" / "1", partial)
    shutil.rmtree(partial / "progress")
    checkpoints = Checkpoints(folder)
    state, progress = checkpoints.restore_last(shapes(make_state()))
    assert_same(state, make_state(1))
    assert progress == {"epoch": 1}
    checkpoints.save_last(2, make_state(2), {"epoch": 2})
    assert_same(checkpoints.restore_last(shapes(make_state()))[0], make_state(2))
    checkpoints.close()
    assert sorted(path.name for path in (folder / "last").iterdir()) == ["1", "2"]


def flip_a_bit(folder, where=0.5):
    """Flips one bit of the largest file of a checkpoint, which holds its arrays."""
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0x10
    path.write_bytes(data)


def noise(seed):
    """A network of incompressible weights, as a run of any model saves it."""
    kernel = jax.random.normal(jax.random.key(seed), (300, 400))
    return {"params": {"a": {"kernel": kernel}}, "gates": {"a": {"kernel": kernel > 0}}, "step": jnp.int32(seed)}


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
def test_a_flipped_bit_in_the_newest_is_noticed_and_the_one_before_takes_its_place(tmp_path, where, caplog):
    checkpoints = Checkpoints(tmp_path)
    for seed in (1, 2, 3):
        checkpoints.save_last(seed, noise(seed), {"epoch": seed})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["2", "3"]
    flip_a_bit(tmp_path / "last" / "3" / "state", where)
    checkpoints = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING, logger="absl"):
        state, progress = checkpoints.restore_last(shapes(noise(0)))
    assert_same(state, noise(2))
    assert progress == {"epoch": 2}
    assert f"{tmp_path / 'last' / '3'} cannot be read (" in caplog.text and "the one before it, 2, takes" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="absl"):
        params, gates = read_network(tmp_path, "last")
    assert_same({"params": params, "gates": gates}, {name: noise(2)[name] for name in ("params", "gates")})
    assert "the one before it, 2, takes its place" in caplog.text

    checkpoints.save_last(4, noise(4), {"epoch": 4})  # the damaged one does not count as the one before
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["2", "4"]
    flip_a_bit(tmp_path / "last" / "4" / "state", where)
    flip_a_bit(tmp_path / "last" / "2" / "state", where)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"last/4 cannot be read: .*; move its run away"):
        checkpoints.restore_last(shapes(noise(0)))
    checkpoints.close()


def test_a_flipped_bit_in_the_only_one_is_an_error(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(1, noise(1), {})
    checkpoints.save_quantised(1, {name: noise(1)[name] for name in ("params", "gates")}, {})
    checkpoints.close()
    for kind in ("best", "quantised"):
        assert_same(read_network(tmp_path, kind)[0], noise(1)["params"])
        flip_a_bit(tmp_path / kind / "1" / "state")
        with pytest.raises(UserError, match=f"{kind}/1 cannot be read"):
            read_network(tmp_path, kind)


def test_every_array_has_its_own_hash(tmp_path):
    """Whatever a file's codec lets through: here the arrays are sound and the record says otherwise."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_last(1, make_state(1), {"epoch": 1})
    checkpoints.close()
    path = tmp_path / "last" / "1" / "progress" / "metadata"
    record = json.loads(path.read_text())
    assert record["hashes"].keys() == trees.by_name(make_state()).keys()
    for name in record["hashes"]:
        changed = {k: v for k, v in record.items() if k != "hash"}
        changed["hashes"] = record["hashes"] | {name: record["hashes"][name] ^ 1}
        path.write_text(json.dumps(changed))
        checkpoints = Checkpoints(tmp_path)
        with pytest.raises(UserError, match=rf"last/1 cannot be read: 1 arrays are not .*, the first is {name};"):
            checkpoints.restore_last(shapes(make_state()))
        checkpoints.close()


def test_a_record_that_was_altered_is_noticed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_last(1, make_state(1), {"epoch": 1})
    checkpoints.close()
    path = tmp_path / "last" / "1" / "progress" / "metadata"
    path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 3'))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match="last/1 cannot be read: its record of the run's progress is damaged"):
        checkpoints.restore_last(shapes(make_state()))
    checkpoints.close()


def test_saves_of_before_there_were_hashes_load(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_last(1, noise(1), {"epoch": 1})
    checkpoints.close()
    path = tmp_path / "last" / "1" / "progress" / "metadata"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("hash")}))
    checkpoints = Checkpoints(tmp_path)
    assert_same(checkpoints.restore_last(shapes(noise(0)))[0], noise(1))
    checkpoints.close()
    assert_same(read_network(tmp_path, "last")[0], noise(1)["params"])


def test_values_that_compare_equal_are_told_apart(checkpoints):
    """Files may leave out what equals the fill value; a minus zero that came back as zero would be a false alarm."""
    state = {"minus": -jnp.zeros((3, 4)), "nan": jnp.full((2,), jnp.nan), "one": -jnp.zeros(())}
    checkpoints.save_last(1, state, {})
    assert_same(checkpoints.restore_last(shapes(state))[0], state)


SAVER = """
import sys, jax.numpy as jnp
from prune_jax.run.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
for step in range(1, 10_000):
    checkpoints.save_last(step, {"x": jnp.full(500_000, step)}, {"step": step})
    if step > 1:
        print(step - 1, flush=True)
"""


@pytest.mark.parametrize("delay", [0.011, *(pytest.param(delay, marks=pytest.mark.slow) for delay in (0.0, 0.023))])
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path, delay):
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, env=environment) as child:
        for _ in range(3):
            assert child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        written = 3 + len(child.stdout.read().split())
    checkpoints = Checkpoints(tmp_path)
    state, progress = checkpoints.restore_last({"x": jax.ShapeDtypeStruct((500_000,), jnp.int32)})
    assert progress["step"] >= written and np.all(np.asarray(state["x"]) == progress["step"])
    checkpoints.close()


def test_orbax_says_nothing_below_a_warning(checkpoints, caplog):
    with caplog.at_level(logging.DEBUG, logger="absl"):
        checkpoints.save_last(1, make_state(), {})
        checkpoints.restore_last(shapes(make_state()))
    assert not caplog.records


@pytest.mark.slow
def test_a_network_is_read_without_knowing_its_optimizer(small_config, tmp_path):
    from prune_jax.run import folder as runs
    from prune_jax.run import train

    train.train_and_evaluate(small_config, tmp_path / "run")
    for kind in ("last", "best"):
        network = runs.load(tmp_path / "run", kind)
        assert network.config.model.d_model == 16
        opened = [np.asarray(leaf).mean() for leaf in jax.tree.leaves(network.gates)]
        assert all(abs(share - 0.25) < 0.02 for share in opened)  # 75 percent closed
        assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {np.dtype("float32")}
    with pytest.raises(UserError, match="is not the folder of a run"):
        runs.load(tmp_path)


@pytest.mark.slow
def test_a_run_starts_from_another_runs_network(small_config, tmp_path):
    from prune_jax.run import folder as runs
    from prune_jax.run import train

    train.train_and_evaluate(small_config, tmp_path / "first")
    small_config.model.init_from = str(tmp_path / "first")
    small_config.model.d_model = small_config.model.d_ff = None  # follow the run, not the size
    small_config.train.learning_rate = 1e-30
    small_config.train.epochs = 1
    train.train_and_evaluate(small_config, tmp_path / "second")
    first, second = runs.load(tmp_path / "first"), runs.load(tmp_path / "second")
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-20)
    for a, b in zip(jax.tree.leaves(first.gates), jax.tree.leaves(second.gates), strict=True):
        np.testing.assert_array_equal(a, b)

    small_config.data.task = "regression"  # another head; the rest is taken over
    train.train_and_evaluate(small_config, tmp_path / "third")
    third = runs.load(tmp_path / "third").params
    np.testing.assert_allclose(first.params["layer_0"]["query"]["kernel"], third["layer_0"]["query"]["kernel"])
    assert "regressor" in third and "classifier" not in third

    small_config.model.d_ff = 48
    with pytest.raises(UserError, match=r"config.model.d_ff is 48, and there it is 32"):
        train.train_and_evaluate(small_config, tmp_path / "fourth")


@pytest.mark.slow
def test_a_run_whose_newest_checkpoint_is_damaged_resumes_from_the_one_before(small_config, tmp_path, monkeypatch):
    from prune_jax.run import train, workdir

    small_config.pruning.method, small_config.train.epochs = "magnitude", 3
    train.train_and_evaluate(small_config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 25, signal.SIGTERM)  # in the third epoch: its save follows that of the second
        with pytest.raises(Stopped):
            train.train_and_evaluate(small_config, tmp_path / "parts")
    workdir.release(tmp_path / "parts")
    saves = sorted((tmp_path / "parts" / "checkpoints" / "last").iterdir(), key=lambda path: int(path.name))
    flip_a_bit(saves[-1] / "state")
    train.train_and_evaluate(small_config, tmp_path / "parts")
    assert "resuming after 2 epochs and 0 steps" in (tmp_path / "parts" / "run.log").read_text()
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
