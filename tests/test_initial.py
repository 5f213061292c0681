"""The network that a run starts from: the classes of its head, by their names."""

import jax
import numpy as np
import pytest

from configs import common
from prune_jax import config as config_lib
from prune_jax import models
from prune_jax.data.glue import BUILTIN_TASKS, IMAGE_TASKS, TASKS
from prune_jax.errors import UserError
from prune_jax.models import Bert, BertConfig
from prune_jax.run import distill, initial
from prune_jax.run import folder as runs


def bert(num_labels=2, regression=False):
    return Bert(BertConfig(20, 1, 8, 2, 8, num_labels=num_labels, regression=regression, max_positions=8))


def variables(model, seed=0):
    """A random network of the model, half of its gates closed."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes["params"])
    return params, jax.tree.map(lambda x: rng.random(x.shape) < 0.5, shapes["gates"])


def write_run(folder, task, source="tsv", model=None):
    """The folder of a run on a task whose network is random; (its params, its gates)."""
    config = common.get_config()
    config.model.update(num_layers=1, d_model=8, num_heads=2, d_ff=8, max_positions=8)
    config.data.update(task=task, source=source, dir="GLUE", max_len=8)
    folder.mkdir()
    params, gates = variables(model or bert(), seed=1)
    runs.write(folder, runs.Network(config, params, gates))
    return params, gates


def begin(folder, model, labels):
    """(params, gates, line) of a new network of the model that starts from the run in `folder`."""
    started = initial.start(str(folder), "best", model, labels)
    return *started.into(*variables(model, seed=2)), started.line


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_classes_in_another_order_are_permuted(tmp_path):
    theirs, closed = write_run(tmp_path / "qnli", "qnli")
    params, gates, line = begin(tmp_path / "qnli", bert(), TASKS["wnli"].labels)
    assert TASKS["wnli"].labels == TASKS["qnli"].labels[::-1]
    np.testing.assert_array_equal(params["classifier"]["kernel"], theirs["classifier"]["kernel"][:, ::-1])
    np.testing.assert_array_equal(params["classifier"]["bias"], theirs["classifier"]["bias"][::-1])
    np.testing.assert_array_equal(gates["classifier"]["kernel"], closed["classifier"]["kernel"][:, ::-1])
    rest = [name for name in theirs if name != "classifier"]
    assert all(same(params[name], theirs[name]) for name in rest)
    assert all(same(gates[name], closed[name]) for name in rest if name in closed)
    says = "its classifier, entailment, not_entailment there, in this task's order"
    assert line == f"initial   {tmp_path / 'qnli'}; {says}"


def test_classes_of_other_names_get_a_new_head(tmp_path):
    theirs, closed = write_run(tmp_path / "sst2", "sst2")
    params, gates, line = begin(tmp_path / "sst2", bert(), TASKS["cola"].labels)
    new_params, new_gates = variables(bert(), seed=2)
    assert same(params["classifier"], new_params["classifier"]) and same(params["pooler"], theirs["pooler"])
    assert same(gates["classifier"], new_gates["classifier"]) and same(gates["pooler"], closed["pooler"])
    says = "its own classifier is of negative, positive, not of unacceptable, acceptable"
    assert line == f"initial   {tmp_path / 'sst2'}; a new classifier; {says}"


@pytest.mark.parametrize(
    ("task", "source", "labels"),
    [
        ("sst2", "tsv", TASKS["sst2"].labels),
        ("sst2", "builtin", TASKS["sst2"].labels),  # single has the same names in the same order
        ("qnli", "tsv", TASKS["rte"].labels),
        ("wnli", "builtin", BUILTIN_TASKS["pair"].labels),
    ],
)
def test_equal_classes_are_kept(task, source, labels, tmp_path):
    theirs, closed = write_run(tmp_path / "run", task, source)
    params, gates, line = begin(tmp_path / "run", bert(), labels)
    assert same(params, theirs) and same(gates, closed)
    assert line == f"initial   {tmp_path / 'run'}; its classifier"


def test_a_score_is_no_class(tmp_path):
    theirs, _ = write_run(tmp_path / "run", "stsb", model=bert(1, regression=True))
    params, _, line = begin(tmp_path / "run", bert(), TASKS["sst2"].labels)
    assert same(params["classifier"], variables(bert(), seed=2)[0]["classifier"])
    assert line.endswith("; a new classifier")
    params, _, line = begin(tmp_path / "run", bert(1, regression=True), TASKS["stsb"].labels)
    assert same(params, theirs) and line.endswith("; its regressor")


def test_digits_have_no_names_to_compare(tmp_path):
    config = common.get_config()
    config.model.name = "lenet_300_100"
    model = models.create(config, IMAGE_TASKS["digits"], None)
    theirs, _ = write_run(tmp_path / "run", "digits", "builtin", model)
    assert same(begin(tmp_path / "run", model, IMAGE_TASKS["digits"].labels)[0], theirs)


def test_another_network_is_refused_with_what_differs(tmp_path):
    write_run(tmp_path / "run", "sst2")
    wider = Bert(BertConfig(20, 1, 8, 2, 12, num_labels=2, max_positions=8))
    with pytest.raises(UserError, match=r"is another network .*layer_0/ffn_hidden/bias: \(8,\) there, \(12,\) here"):
        initial.start(str(tmp_path / "run"), "best", wider, TASKS["sst2"].labels)


def test_a_teacher_of_the_built_in_task_of_that_name_is_refused(tmp_path):
    """WNLI of the built-in source is "pair", whose classes come in the other order."""
    write_run(tmp_path / "run", "wnli", "builtin")
    config, _ = config_lib.resolve(common.get_config(), {})
    with config.unlocked():
        config.data.task, config.distill.teacher = "wnli", str(tmp_path / "run")
    with pytest.raises(UserError, match="cannot teach this run: its task is pair, and this run's is wnli"):
        distill._read(config, TASKS["wnli"])


def export_with_zeros(folder, closed):
    """A transformers checkpoint of a random Bert whose kernels have this share of zeros; (its params, its gates)."""
    import safetensors.numpy

    from prune_jax import files
    from prune_jax.export import checkpoint

    model = bert()
    params, gates = variables(model, seed=1)
    rng = np.random.default_rng(3)
    gates = jax.tree.map(lambda gate: rng.random(gate.shape) >= closed, gates)
    config, tensors, _ = checkpoint.describe(params, gates, model.cfg, TASKS["sst2"].labels)
    folder.mkdir()
    files.write_json(folder / "config.json", config)
    files.write_bytes(folder / "model.safetensors", safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    return params, gates


@pytest.mark.parametrize(
    ("closed", "keep", "taken"),
    [(0.5, "auto", True), (0.5, "never", False), (0.0, "auto", False), (0.004, "auto", False), (0.004, "always", True)],
)
def test_the_zeros_of_an_export_are_closed_gates(closed, keep, taken, tmp_path):
    _, gates = export_with_zeros(tmp_path / "export", closed)
    model = bert()
    started = initial.start(str(tmp_path / "export"), "best", model, TASKS["sst2"].labels, keep_zeros=keep)
    params, opened = variables(model, seed=2)
    found = started.into(params, jax.tree.map(np.ones_like, opened))[1]
    wanted = gates if taken else jax.tree.map(np.ones_like, gates)
    assert same(found, wanted)
    assert ("% of its kernels' weights are 0 and stay closed (config.model.keep_zeros)" in started.line) == taken


def test_the_zeros_of_another_tasks_head_are_not_taken(tmp_path):
    export_with_zeros(tmp_path / "export", 0.5)
    started = initial.start(str(tmp_path / "export"), "best", bert(), TASKS["cola"].labels)
    assert not any(name.startswith("classifier") for name in started.gates) and started.gates
