"""Soft targets against float64, logits by example, stops and resumptions, and teachers that do not fit."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import assert_same_trees, numbers, saved_state, stop_at

from prune_jax.errors import Stopped, UserError
from prune_jax.run import distill, inputs, train, workdir
from prune_jax.run import state as state_lib
from prune_jax.run.commands import export

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A dense run of small_config, its config and its data."""
    from configs import common

    config = common.get_config()
    config.model.update({"size": "tiny", "num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32})
    config.data.update({"source": "builtin", "task": "single", "max_len": 16})
    config.data.update({"builtin_train_size": 100, "builtin_eval_size": 40})
    config.train.update({"epochs": 1, "batch_size": 16, "eval_batch_size": 32, "learning_rate": 1e-3})
    config.pruning.method = "baseline"
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train.train_and_evaluate(config, folder)
    return folder, config


def student(run, **distillation):
    folder, config = run
    config = config.copy_and_resolve_references()
    config.distill.update({"teacher": str(folder), **distillation})
    return config


def loaded(config):
    config, _ = inputs.resolve(config, {})
    dataset = inputs.load_data(config)
    return config, dataset, distill.load(config, dataset)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_losses_equal_float64(temperature):
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0, 3, (2, 5, 4))
    log_p, log_q = (x / temperature - np.log(np.exp(x / temperature).sum(1, keepdims=True)) for x in (theirs, ours))
    expected = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(1)
    found = distill.soft_losses(jnp.float32(ours), jnp.float32(theirs), temperature, False)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    scores = distill.soft_losses(jnp.float32(ours[:, :1]), jnp.float32(theirs[:, :1]), temperature, True)
    np.testing.assert_allclose(scores, (ours - theirs)[:, 0] ** 2, rtol=1e-5)


@pytest.mark.slow
def test_logits_travel_by_example_and_come_from_the_cache_again(teacher, tmp_path):
    config, dataset, found = loaded(student(teacher))
    config.data.cache_dir = str(tmp_path)  # another test may have asked the teacher before
    taught, line = distill.teach(found, config, dataset)
    again, cached = distill.teach(found, config, dataset)
    assert line.endswith("computed") and cached.endswith("from the cache")
    np.testing.assert_array_equal(taught.train.logits, again.train.logits)
    rows = np.array([7, 3, 60])
    batch = taught.train.batch(rows, 32, 4)
    alone = state_lib.apply(found.model, *found.variables.values(), dataset.train.batch(rows, 32, 4))
    np.testing.assert_allclose(batch[distill.LOGITS][:3], alone[:3], atol=1e-5)
    assert not batch[distill.LOGITS][3].any()
    third = taught.train.take(rows).batch(np.array([2]), 32, 1)
    np.testing.assert_array_equal(third[distill.LOGITS], batch[distill.LOGITS][2:3])
    other = jax.tree.map(lambda x: x + 1 if x.dtype == np.float32 else x, found.variables)
    changed, *same = (distill._fingerprint(t, dataset.train) for t in (found._replace(variables=other), found, found))
    assert changed not in same and same[0] == same[1]


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_and_layers_differ_by_hand(teacher):
    settings = {"temperature": 1.0, "weight": 1.0, "hidden_weight": 2.0, "attention_weight": 3.0}
    config, dataset, found = loaded(student(teacher, **settings))
    taught, _ = distill.teach(found, config, dataset)
    batch = jax.device_put(taught.train.batch(np.arange(6), 32, 8))
    loss = distill.training_loss(config.distill, found)
    params, gates = found.variables["params"], found.variables["gates"]
    step = jax.jit(jax.value_and_grad(lambda p: loss(found.model, p, gates, batch, None, found.variables)))
    value, grads = step(params)
    assert abs(value) < 1e-6 and all(np.abs(g).max() < 1e-5 for g in jax.tree.leaves(grads))

    moved = jax.tree.map(lambda x: x * np.float32(1.1), params)
    ours, theirs = (state_lib.apply(found.model, p, gates, batch, None, True)[1] for p in (moved, params))
    mask = np.asarray(batch["attention_mask"] * batch["weights"][:, None], np.float64)
    expected = np.mean(distill.soft_losses(
        state_lib.apply(found.model, moved, gates, batch), batch[distill.LOGITS], 1.0, False)[:6])  # fmt: skip
    for name, weight in (("hidden", 2.0), ("attention", 3.0)):
        which = mask[:, :, None] if name == "hidden" else mask[:, None, :, None] * mask[:, None, None, :]
        squares = [np.square(np.float64(a) - np.float64(b)) for a, b in zip(ours[name], theirs[name], strict=True)]
        which = np.broadcast_to(which, squares[0].shape)
        expected += weight * np.mean([s[which > 0].mean() for s in squares])
    np.testing.assert_allclose(step(moved)[0], expected, rtol=1e-4)


def test_the_loss_weighs_labels_and_soft_targets_over_the_real_rows(teacher):
    config, dataset, found = loaded(student(teacher, temperature=2.0, weight=0.25))
    batch = distill.Taught(dataset.train, np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)).batch(
        np.arange(5), 32, 8
    )
    params, gates = found.variables["params"], found.variables["gates"]
    value = distill.training_loss(config.distill, found)(found.model, params, gates, batch, None, None)
    logits = state_lib.apply(found.model, params, gates, batch)
    hard = found.model.losses(logits, batch)
    soft = distill.soft_losses(logits, batch[distill.LOGITS], 2.0, False)
    np.testing.assert_allclose(value, np.mean(0.75 * hard[:5] + 0.25 * soft[:5]), rtol=1e-5)


def test_four_layers_of_a_teacher_teach_the_nearest_each_through_a_map():
    """The teacher's layers are 1 to 6 in each entry, the student's 1, 3 and 9, mapped to 2, 6 and 18."""
    ours, theirs = ([jnp.full((1, 2, 2), float(v)) for v in values] for values in ((1, 3, 9), range(1, 7)))
    ours, mask = [x.at[:, 1].set(99.0) for x in ours], jnp.array([[[1.0], [0.0]]])
    matrix = jnp.array([[2.0, 1.0], [0.0, 1.0]])
    found, grad = jax.value_and_grad(lambda m: distill._nearest(ours, theirs, mask, m))(matrix)
    assert found == (0**2 + 1**2 + 1**2 + 0**2) / 4  # layers 2, 3, 5 and 6 have 2, 2, 6, 6 as the nearest of 2, 6, 18
    np.testing.assert_allclose(grad, (2 * (2 - 3) * 1 + 2 * (6 - 5) * 3) / 2 / 4)  # each entry of the map


def test_every_second_layer_of_a_deeper_teacher():
    theirs = [jnp.full((1, 2, 1), float(i)) for i in range(4)]
    found = distill._mean_square([jnp.zeros((1, 2, 1))] * 2, theirs, jnp.ones((1, 2, 1)))
    assert found == (1**2 + 3**2) / 2


@pytest.mark.slow
def test_a_pruned_student_trains_and_weight_0_changes_no_bit(teacher, tmp_path):
    def run(name, **distillation):
        config = student(teacher, **distillation)
        config.model.num_layers = 1
        config.pruning.method, config.pruning.start_epoch = "spt", 0
        config.pruning.sparsity_steps, config.train.epochs, config.spt.epsilon = (50,), 1, 0.05
        train.train_and_evaluate(config, tmp_path / name)
        return numbers(tmp_path / name)

    plain = run("plain", teacher="")
    assert run("zero", weight=0.0) == plain
    deep = run("deep", hidden_weight=1.0, attention_weight=0.1)
    assert deep[0]["train_loss"] != plain[0]["train_loss"] and deep[0]["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_a_checkpoint_teaches_in_the_order_of_the_tasks_labels(teacher, tmp_path):
    export.export(teacher[0], tmp_path / "out")
    config, dataset, found = loaded(student((tmp_path / "out", teacher[1])))
    expected = distill.teach(found, config, dataset)[0].train.logits
    path = tmp_path / "out" / "config.json"
    raw = json.loads(path.read_text()) | {"label2id": None}
    path.write_text(json.dumps(raw | {"id2label": {"0": "Positive", "1": "Negative"}}))
    swapped = distill.teach(distill.load(config, dataset), config, dataset)[0].train.logits
    np.testing.assert_array_equal(swapped, expected[:, ::-1])
    path.write_text(json.dumps(raw | {"id2label": {"0": "cat", "1": "dog"}}))
    with pytest.raises(UserError, match=r"teacher=.*its own classifier is of cat, dog, not of negative"):
        distill.load(config, dataset)


# By the logits alone; with the teacher in the step.
@pytest.mark.slow
@pytest.mark.parametrize("hidden_weight", [0.0, 1.0])
def test_a_stopped_run_resumes_with_the_cached_logits_to_equal_numbers(teacher, hidden_weight, tmp_path, monkeypatch):
    def run(name):
        config = student(teacher, hidden_weight=hidden_weight, hidden_match="nearest")
        config.model.num_layers, config.train.epochs = 1, 2
        config.pruning.method, config.pruning.start_epoch, config.pruning.sparsity_steps = "magnitude", 0, (25, 50)
        config.data.cache_dir = str(tmp_path / f"cache_{name}")
        train.train_and_evaluate(config, tmp_path / name)

    run("whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 10, signal.SIGTERM)  # in the second of two epochs of 7 steps
        with pytest.raises(Stopped, match="SIGTERM after step 10"):
            run("parts")
    workdir.release(tmp_path / "parts")
    run("parts")
    log = (tmp_path / "parts" / "run.log").read_text()
    assert log.index("logits computed") < log.index("logits from the cache") and "resuming after 1 epochs and 3" in log
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    for kind in ("last", "best"):
        assert_same_trees(saved_state(tmp_path / "whole", kind), saved_state(tmp_path / "parts", kind))


def test_images_have_teachers_too(small_config, tmp_path):
    small_config.model.name, small_config.data.task = "lenet_300_100", "digits"
    small_config.pruning.method, small_config.train.epochs = "baseline", 1
    small_config.train.batch_size = 256
    train.train_and_evaluate(small_config, tmp_path / "teacher")
    config, dataset, found = loaded(student((tmp_path / "teacher", small_config)))
    taught, _ = distill.teach(found, config, dataset)
    assert taught.train.logits.shape == (len(dataset.train), 10)
    assert set(taught.train.batch(np.arange(3), 1, 4)) == {"image", "labels", "weights", distill.LOGITS}
    config.distill.hidden_weight = 1.0
    with pytest.raises(UserError, match=r"config\.distill\.hidden_weight is 1; allowed: 0 with .*lenet_300_100"):
        distill.load(config, dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.teacher": "/nowhere"}, r"config\.distill\.teacher.*'/nowhere'"),
        ({"data.task": "pair"}, "its task is single, and this run.s is pair"),
        ({"data.builtin_seed": 5}, "another vocabulary"),
        ({"distill.hidden_weight": 1.0, "model.d_model": 32}, "needs the same d_model: 16 there, 32 here"),
        ({"distill.attention_weight": 1.0, "model.num_layers": 3}, "as many layers, or a multiple: 2 there, 3 here"),
    ],
)
def test_a_teacher_that_does_not_fit_is_told_before_anything_is_written(changes, message, teacher, tmp_path):
    config = student(teacher)
    for key, value in changes.items():
        room, name = key.split(".")
        config[room][name] = value
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
