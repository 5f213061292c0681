"""Whole runs: files, targets, compilations, repetition to the bit, stops and resumptions, and mistakes."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, devices

import prune_jax as pj
from configs import common
from prune_jax import files, methods, models, report
from prune_jax.config import schedules
from prune_jax.data import batching
from prune_jax.errors import Diverged, Stopped, UserError
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed, trees
from prune_jax.run import folder as runs
from prune_jax.run import inputs, train, workdir
from prune_jax.run import state as state_lib

METHODS = ["baseline", "magnitude", "movement", "spt"]


def numbers(folder) -> list[dict]:
    """metrics.csv without what a clock decides."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report.read_metrics(folder)]


def saved_state(folder, kind="last"):
    """The arrays of a checkpoint as Orbax has them, with no help from the code that wrote them."""
    import orbax.checkpoint as ocp

    newest = max((folder / "checkpoints" / kind).glob("[0-9]*"), key=lambda path: int(path.name))
    return ocp.StandardCheckpointer().restore(newest / "state")


def assert_same_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_its_files_and_meets_every_target(method, small_config, tmp_path):
    small_config.pruning.method = method
    small_config.report.sinks = ("tensorboard",)
    summary = train.train_and_evaluate(small_config, tmp_path / "run")
    folder = tmp_path / "run"
    rows = report.read_metrics(folder)
    columns = ["epoch", "step", "train_loss", "eval_loss", "eval_metric", "sparsity", "target_sparsity", "seconds"]
    assert list(rows[0])[:8] == columns and ("mean_reward" in rows[0]) == (method == "spt")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4] and rows[-1]["step"] == 40  # ceil(150 / 16) = 10 an epoch
    targets = [0, 0, 0, 0] if method == "baseline" else [0, 0.25, 0.5, 0.75]
    assert [row["target_sparsity"] for row in rows] == targets
    gates = saved_state(folder)["gates"]
    for leaf in jax.tree.leaves(gates):
        assert abs((~np.asarray(leaf)).sum() - targets[-1] * leaf.size) <= 1
    prunable = summary["num_prunable"]
    assert prunable == gates_lib.count(gates) == 16 * 16 * 4 + 2 * 16 * 32 + 16 * 16 + 16 * 2
    for row, target in zip(rows, targets, strict=True):
        assert abs(row["sparsity"] - target) * prunable <= len(jax.tree.leaves(gates))
    saved = json.loads((folder / "summary.json").read_text())
    assert saved["method"] == method and saved["task"] == "single" and saved["metric_name"] == "accuracy"
    assert saved["final_metric"] == rows[-1]["eval_metric"] and saved["steps"] == 40 and saved["epochs"] == 4
    assert saved["versions"]["jax"] == jax.__version__
    layers = report.read_layers(folder)
    assert [row.pop("epoch") for row in layers] == [1, 2, 3, 4] and layers[-1] == saved["layer_sparsity"]
    before = [row["sparsity_before_pruning"] for row in rows]
    if method == "movement":  # prunes inside its epochs too
        assert before[0] == 0 and all(a <= b <= c for (a, c), b in zip(pairwise([0, *targets]), before, strict=True))
    else:
        assert before == [0, *(row["sparsity"] for row in rows[:-1])]
    dense = [row["metric_before_pruning"] for row in rows if row["sparsity_before_pruning"] == 0]
    assert saved["dense_metric"] == max(dense)
    best = max(rows, key=lambda row: (row["sparsity"], row["eval_metric"]))
    assert (saved["best_metric"], saved["best_epoch"]) == (best["eval_metric"], best["epoch"])
    names = {"config.json", "provenance.json", "run.log", "checkpoints", "plots", "tensorboard", "tokenizer"}
    assert names <= {path.name for path in folder.iterdir()}
    drawn = {path.name for path in (folder / "plots").iterdir()}
    assert drawn == {"loss.png", "metric.png"} | ({"importance.png"} if method == "spt" else set())
    assert list((folder / "tensorboard").glob("events.*"))
    assert "epoch 4/4" in (folder / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["movement", "spt"])
def test_nothing_compiles_after_the_first_epoch(method, small_config, tmp_path, monkeypatch):
    traces = []
    epochs = []

    def counting(make):
        def wrapped(*args):
            inner = make(*args)

            def step(*inner_args):
                traces.append(len(epochs))
                return inner(*inner_args)

            return step

        return wrapped

    original = train.Loop.finish_epoch

    def finish(self):
        original(self)
        epochs.append(self.progress["epoch"])

    monkeypatch.setattr(state_lib, "make_train_step", counting(state_lib.make_train_step))
    monkeypatch.setattr(state_lib, "make_eval_step", counting(state_lib.make_eval_step))
    monkeypatch.setattr(train.Loop, "finish_epoch", finish)
    small_config.pruning.method = method
    small_config.train.lr_schedule = "linear"
    small_config.data.max_len = 32
    train.train_and_evaluate(small_config, tmp_path / "run")
    assert epochs == [1, 2, 3, 4]
    assert len(traces) == 4  # two bucket lengths, for training and for evaluation
    assert set(traces) == {0}, "something was traced after the first epoch"


def stop_at(monkeypatch, step, number):
    """Sends the process a signal while it trains its step-th step."""
    original, count = batching.train_batches, [0]

    def batches(*args):
        for batch in original(*args):
            count[0] += 1
            if count[0] == step:
                os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(batching, "train_batches", batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "step", "number"),
    [
        ("spt", 17, signal.SIGTERM),
        ("regrowing movement", 34, signal.SIGINT),
        ("spt", 40, signal.SIGTERM),
    ],
)
def test_a_stopped_run_resumes_to_the_numbers_of_an_undisturbed_one(
    method, step, number, small_config, tmp_path, monkeypatch
):
    """Also a run that is asked at its last step, and runs once more as it did: the same seed, the same bits."""
    small_config.pruning.method = method.split()[-1]
    small_config.movement.regrow = method.startswith("regrowing")
    small_config.spt.explorations = 2
    train.train_and_evaluate(small_config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, step, number)
        if step == 40:  # the last step: there is nothing left to stop
            train.train_and_evaluate(small_config, tmp_path / "parts")
        else:
            with pytest.raises(Stopped, match=f"{number.name} after step {step}") as stopped:
                train.train_and_evaluate(small_config, tmp_path / "parts")
            assert stopped.value.exit_code == 128 + number
            assert signal.getsignal(number) is not None
            assert not (tmp_path / "parts" / "summary.json").exists()
            workdir.release(tmp_path / "parts")
            train.train_and_evaluate(small_config, tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    assert report.read_layers(tmp_path / "whole") == report.read_layers(tmp_path / "parts")
    for kind in ("last", "best"):
        assert_same_trees(saved_state(tmp_path / "whole", kind), saved_state(tmp_path / "parts", kind))
    assert not list(tmp_path.glob("*.zip"))
    if step == 40:
        with small_config.unlocked():
            small_config.train.seed = 1
        train.train_and_evaluate(small_config, tmp_path / "other")
        assert numbers(tmp_path / "whole") != numbers(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structure", "method", "step"),
    [("hidden+layer", "magnitude", 25), ("auto", "movement", 33)],
)
def test_a_run_by_groups_stopped_after_its_first_pruning_resumes_to_the_same(
    structure, method, step, small_config, tmp_path, monkeypatch
):
    small_config.model.num_layers, small_config.pruning.scope = 2, "global"
    small_config.pruning.structure, small_config.pruning.method = structure, method
    train.train_and_evaluate(small_config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, step, signal.SIGTERM)
        with pytest.raises(Stopped):
            train.train_and_evaluate(small_config, tmp_path / "parts")
        workdir.release(tmp_path / "parts")
    pruned = [row["sparsity"] for row in report.read_metrics(tmp_path / "parts")]
    assert pruned and pruned[-1] > 0  # what is restored has closed gates, of biases and norms, too
    train.train_and_evaluate(small_config, tmp_path / "parts")
    assert "resuming after" in (tmp_path / "parts" / "run.log").read_text()
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    costs = [files.read_json(tmp_path / name / "summary.json")["cost"] for name in ("whole", "parts")]
    for word in ("parameters", "flops", "bytes"):
        assert costs[0][word] == costs[1][word] and costs[0][word]["pruned"] < costs[0][word]["dense"]
    for kind in ("last", "best"):
        assert_same_trees(saved_state(tmp_path / "whole", kind), saved_state(tmp_path / "parts", kind))


def test_regrowing_movement_reopens_gates_at_every_target(small_config, tmp_path, monkeypatch):
    reopened, original = [], train.Loop.pruned

    def pruned(self, target, exact):
        state, moved = original(self, target, exact)
        pairs = zip(*(jax.tree.leaves(packed.unpack(tree)) for tree in (self.state.gates, state.gates)), strict=True)
        reopened.append(sum(int((~np.asarray(a) & np.asarray(b)).sum()) for a, b in pairs))
        return state, moved

    monkeypatch.setattr(train.Loop, "pruned", pruned)
    small_config.pruning.method, small_config.movement.regrow, small_config.train.epochs = "movement", True, 5
    train.train_and_evaluate(small_config, tmp_path / "run")
    rows, targets = report.read_metrics(tmp_path / "run"), [0, 0.25, 0.5, 0.75, 0.75]
    for row, target in zip(rows, targets, strict=True):
        assert row["sparsity"] == pytest.approx(target, abs=1e-3)
    assert sum(count > 0 for count in reopened) > len(reopened) / 2
    assert rows[-1]["sparsity_before_pruning"] == rows[-1]["sparsity"]  # and yet the last epoch's end moved the mask
    assert reopened[-1] > 0


@pytest.mark.slow
def test_a_finished_run_is_zipped_before_the_next(small_config, tmp_path):
    train.train_and_evaluate(small_config, tmp_path / "run")
    first = numbers(tmp_path / "run")
    with small_config.unlocked():
        small_config.train.epochs = 2
    train.train_and_evaluate(small_config, tmp_path / "run")
    assert len(numbers(tmp_path / "run")) == 2
    (archive,) = tmp_path.glob("run_*.zip")
    import zipfile

    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "unzipped")
    assert numbers(tmp_path / "unzipped" / "run") == first


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 17])
def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(step, small_config, tmp_path, monkeypatch):
    original, count = batching.train_batches, [0]

    def batches(*args):
        for batch in original(*args):
            count[0] += 1
            yield {**batch, "weights": batch["weights"] * np.nan} if count[0] == step else batch

    monkeypatch.setattr(batching, "train_batches", batches)
    with pytest.raises(Stopped, match=f"nan at step {step};.*learning_rate") as stopped:
        train.train_and_evaluate(small_config, tmp_path / "run")
    assert stopped.value.exit_code == Diverged.EXIT_CODE == 3
    if step > 10:
        saved = saved_state(tmp_path / "run")
        assert saved["step"] == 10 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved["params"]))


def test_mistakes_are_told_before_anything_is_written(small_config, tmp_path):
    for key, value, message in (
        ("model.vocab_size", 12345, "config.model.vocab_size is 12345, but the tokenizer has"),
        ("train.batch_size", 151, "config.train.batch_size is 151, more than the 150"),
        ("data.tokenizer", str(tmp_path / "nothing"), "config.data.tokenizer="),
    ):
        config = small_config.copy_and_resolve_references()
        room, name = key.split(".")
        config[room][name] = value
        with pytest.raises(UserError, match=message):
            train.train_and_evaluate(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_counts")
def test_learning_rates_and_hyper_enter_as_arrays(small_config, tmp_path):
    """One compiled step serves every rate and every epsilon."""
    from prune_jax.run import optim

    small_config.pruning.method = "spt"
    config, _ = inputs.resolve(small_config, {})
    dataset = inputs.load_data(config)
    model = models.create(config, dataset.task, dataset.tokenizer.vocab_size)
    method = methods.from_config(config)
    optimizer = optim.create(0.01, 1.0, ())
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
    plan = state_lib.make_plan(model, shapes["gates"], "unstructured", "local")
    state = state_lib.init_state(model, method, optimizer, plan, jax.random.key(0))
    step = jax.jit(state_lib.make_train_step(model, method, optimizer, plan))
    batch = next(batching.train_batches(dataset.train, 16, (32,), 0, 0))
    after = []
    for rate, epsilon in ((0.0, 0.1), (1e-3, 0.1), (1e-3, 0.9)):
        hyper = {"epsilon": np.float32(epsilon), "reward_alpha": np.float32(0.125)}
        after.append(step(state, batch, optim.rates(rate, 1.0, {}), hyper)[0])
    assert step._cache_size() == 1
    assert_same_trees(after[0].params, state.params)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(a - b).max()), after[1].params, state.params))
    assert max(moved) > 5e-4
    visited = [sum(float(v.sum()) for v in jax.tree.leaves(packed.unpack(s.method["state"]["visited"]))) for s in after]
    assert visited[2] > 5 * visited[1] > 0


def test_an_epoch_that_moves_no_gate_is_evaluated_once(small_config, tmp_path, monkeypatch):
    """Also where the rounding of a target keeps the sparsity below it: 33% of 32 gates are 11, 34.4%; of 256, 84."""
    count, original = [], train.Loop.evaluate

    def evaluate(self, params, gates):
        count.append(self.progress["epoch"])
        return original(self, params, gates)

    monkeypatch.setattr(train.Loop, "evaluate", evaluate)
    small_config.pruning.method, small_config.pruning.sparsity_steps = "magnitude", (33,)
    train.train_and_evaluate(small_config, tmp_path / "run")
    rows = report.read_metrics(tmp_path / "run")
    assert [row["target_sparsity"] for row in rows] == [0, 0.33, 0.33, 0.33] and 0.32 < rows[-1]["sparsity"] < 0.33
    assert count == [0, 1, 1, 2, 3]  # before and after the one pruning
    for row in rows[2:]:
        assert row["metric_before_pruning"] == row["eval_metric"]


def by_hand(config):
    """The run of a config in a loop of one's own: pj.prune around AdamW. Returns the state of the optimizer."""
    config, _ = inputs.resolve(config, {})
    dataset = inputs.load_data(config)
    model = models.create(config, dataset.task, dataset.vocab_size)
    init_key, run_key = jax.random.split(jax.random.key(config.train.seed))
    params = jax.jit(model.init)(init_key, *model.example_inputs())["params"]

    per_epoch = batching.num_train_batches(dataset.train, config.train.batch_size)
    target = schedules.sparsity_schedule(config)
    epochs = np.arange(config.train.epochs + 1)
    counts, targets = jnp.asarray(epochs * per_epoch), jnp.asarray([target(int(epoch)) for epoch in epochs])
    schedule = pj.Schedule(
        target=lambda count: jnp.interp(count, counts, targets),
        due=lambda count: count % per_epoch == 0,
        final=target(config.train.epochs),
    )
    name = config.pruning.method
    method = getattr(pj, name)(**{key: config[name][key] for key in methods.options(name)})
    kernels = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)
    adamw = optax.chain(
        optax.clip_by_global_norm(config.train.clip_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(config.train.weight_decay, mask=kernels),
        optax.scale(-config.train.learning_rate),
    )
    tx = pj.prune(adamw, method, schedule, scope=config.pruning.scope, seed=run_key)

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            return state_lib.batch_loss(model, params, {}, batch)

        updates, state = tx.update(jax.grad(lambda p: loss(pj.masked(p, state)))(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for epoch in range(config.train.epochs):
        for batch in batching.train_batches(
            dataset.train, config.train.batch_size, dataset.buckets, config.train.seed, epoch
        ):
            params, state = step(params, state, batch)
    return params, state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "scope", "changes"),
    [
        ("magnitude", "global", {}),
        ("movement", "local", {"movement.frequency": 3}),
        ("movement", "local", {"movement.frequency": 3, "movement.regrow": True}),
        ("spt", "local", {"spt.epsilon": 0.05, "spt.explorations": 2}),
        ("spt", "global", {"spt.epsilon": 0.3, "spt.credit": "layer"}),
    ],
    ids=["magnitude", "movement", "regrowing movement", "spt", "spt layer"],
)
def test_a_loop_of_ones_own_closes_the_same_gates(method, scope, changes, tmp_path):
    """The same data, seeds and schedule, with clipping, decay and padding rows: launch's run, and pj.prune's."""
    config = common.get_config()
    config.model.name = "lenet_300_100"
    config.data.task, config.data.source, config.data.max_train_examples = "digits", "builtin", 250
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 3, 32, 1e-3
    config.train.warmup_fraction, config.train.lr_schedule = 0.0, "constant"
    config.pruning.method, config.pruning.scope = method, scope
    config.pruning.start_epoch, config.pruning.sparsity_steps = 0, (40, 70, 90)
    config.update_from_flattened_dict(changes)
    assert config.train.clip_norm > 0 and config.train.weight_decay > 0
    train.train_and_evaluate(config, tmp_path / "run")
    network = runs.load(tmp_path / "run")
    params, state = by_hand(config)
    gates = pj.gates(state)
    assert {name: gate.shape for name, gate in trees.by_name(gates).items()} == {
        name: gate.shape for name, gate in trees.by_name(network.gates).items()
    }
    for name, gate in trees.by_name(network.gates).items():
        differ = (np.asarray(trees.by_name(gates)[name]) != np.asarray(gate)).sum()
        assert differ == 0, f"{differ} of {gate.size} gates of {name}"
    assert 0.85 < float(pj.sparsity(state)) < 0.95
    pair = (trees.by_name(gates_lib.masked(tree, gates)) for tree in (params, network.params))
    for (name, one), other in zip(next(pair).items(), next(pair).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-5, err_msg=name)


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(small_config, tmp_path):
    small_config.pruning.method = "spt"
    small_config.pruning.scope = "global"
    small_config.spt.chunk = 1
    train.train_and_evaluate(small_config, tmp_path / "one")
    code = (
        "import json, sys; from prune_jax import config; from prune_jax.run import train;"
        f"c = config.from_json(json.load(open({str(tmp_path / 'one' / 'config.json')!r})));"
        f"train.train_and_evaluate(c, {str(tmp_path / 'eight')!r})"
    )
    parts = code.replace(
        "train.train_and_evaluate", "c.unlock(); c.mesh.fsdp = c.mesh.tensor = 2; train.train_and_evaluate"
    )
    run_python(parts, **devices(8))
    assert "8 x" in json.loads((tmp_path / "eight" / "summary.json").read_text())["device"]
    for one, eight in zip(numbers(tmp_path / "one"), numbers(tmp_path / "eight"), strict=True):
        assert one["sparsity"] == eight["sparsity"]
        np.testing.assert_allclose(one["train_loss"], eight["train_loss"], rtol=1e-3)
        np.testing.assert_allclose(one["eval_loss"], eight["eval_loss"], rtol=2e-2)
    with small_config.unlocked():
        small_config.train.batch_size = 15
    code = code.replace("train.train_and_evaluate", "c.unlock(); c.train.batch_size = 15; train.train_and_evaluate")
    with pytest.raises(AssertionError, match="must be a multiple of 8"):
        run_python(code, **devices(8))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sst2", "stsb", "cola", "mrpc", "rte", "wnli"])
def test_every_real_task_trains_and_evaluates(task, small_config, tmp_path, real_data):
    small_config.data.source = "tsv"
    small_config.data.dir = str(real_data / "glue")
    small_config.data.task = task
    small_config.data.max_len = 64
    small_config.data.max_train_examples = 64
    small_config.train.epochs = 1
    summary = train.train_and_evaluate(small_config, tmp_path / "run")
    (row,) = report.read_metrics(tmp_path / "run")
    assert np.isfinite([row["train_loss"], row["eval_loss"], row["eval_metric"]]).all()
    names = {"cola": "matthews", "stsb": "pearson"}
    assert summary["metric_name"] == names.get(task, "accuracy")
    second = {"mrpc": "eval_f1", "stsb": "eval_spearman"}.get(task)
    assert {name for name in row if name.startswith("eval_")} == {"eval_loss", "eval_metric"} | ({second} - {None})


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pair", "regression"])
@pytest.mark.usefixtures("pictures")
def test_the_other_built_in_tasks_train(task, small_config, tmp_path):
    small_config.data.task = task
    summary = train.train_and_evaluate(small_config, tmp_path / "run")
    assert summary["metric_name"] == {"pair": "accuracy", "regression": "pearson"}[task]
    kernel = {"pair": "classifier", "regression": "regressor"}[task]
    assert summary["layer_sparsity"][kernel] == 0.75


@pytest.mark.slow
def test_a_killed_process_resumes_and_the_command_line_obeys_signals(small_config, tmp_path):
    """launch.py itself: SIGKILL in the middle of an epoch, SIGINT later, and the same numbers in the end."""
    flags = [
        "--config=configs/quickstart.py", "--config.data.builtin_train_size=1600", "--config.model.d_model=64",
        "--config.train.epochs=5", "--config.train.checkpoint_every=7", "--config.pruning.start_epoch=1",
    ]  # fmt: skip
    command = [sys.executable, "-u", "launch.py", *flags]

    def run(folder, number=None, after=0):
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path / folder}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if number:
            for line in process.stdout:
                if line.startswith(f"epoch {after}/"):
                    break
            process.send_signal(number)
        out, err = process.communicate(timeout=900)
        return process.returncode, out, err

    code, out, _ = run("whole")
    assert code == 0 and "best accuracy" in out and "dense start" in out and "results in" in out
    assert run("parts", signal.SIGKILL, after=1)[0] == -signal.SIGKILL
    code, _, err = run("parts", signal.SIGINT, after=3)
    assert code == 130 and "SIGINT" in err and "resumes" in err and "Traceback" not in err
    code, out, _ = run("parts")
    assert code == 0 and "resuming" in out
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    assert_same_trees(saved_state(tmp_path / "whole"), saved_state(tmp_path / "parts"))
