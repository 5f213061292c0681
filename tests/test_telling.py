"""What a run says: an epoch's line, the end, and nothing of its libraries."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from test_docs import _Parsed, parses  # noqa: F401  (a fixture)

from prune_jax import __main__ as commands
from prune_jax import methods, models
from prune_jax.data.glue import BUILTIN_TASKS
from prune_jax.models import units
from prune_jax.run import inputs, state, telling

ROW = {
    "epoch": 3, "step": 30, "train_loss": 0.5, "eval_loss": 0.4, "eval_metric": 0.642, "sparsity": 0.5,
    "target_sparsity": 0.5, "seconds": 1.0, "metric_before_pruning": 0.893,
}  # fmt: skip
SUMMARY = {
    "metric_name": "accuracy", "best_metric": 0.776, "best_epoch": 9, "best_sparsity": 0.9, "dense_metric": 0.789,
    "sparsity": 0.9, "num_params": 1500, "num_prunable": 1000, "seconds": 61.0,
}  # fmt: skip


def test_an_epoch_says_what_the_metric_was_before_the_cut_and_after_it():
    line = telling.epoch_line(ROW, "accuracy", 9, True)
    assert line.startswith("epoch 3/9  ") and "accuracy before the cut 0.8930, after it 0.6420  " in line
    still = telling.epoch_line(ROW, "accuracy", 9, False)
    assert "accuracy 0.6420  " in still and "cut" not in still


def test_the_end_says_what_was_kept_what_it_weighs_and_what_comes_next():
    cost = {"batch": 8, "bytes": {"dense": 6000, "pruned": 900}, "milliseconds": {"dense": 2.0, "pruned": 0.5}}
    bert = SimpleNamespace(inputs=("input_ids",))
    text = "\n".join(telling.closing_lines(SUMMARY | {"cost": cost}, Path("out"), bert))
    for part in (
        "best accuracy 0.7760 at 90.00% sparsity (epoch 9); dense start 0.7890 (-0.0130)",
        "to compare with a dense run of the same length: repeat it with --config.pruning.method=baseline",
        "weights 1,500 -> 600 that are not closed; cut out, 6,000 -> 900 bytes and 2.00 -> 0.50 ms per 8 examples",
        "plots in out/plots",
        "next: prune-jax compress out out.pjx",
        "next: prune-jax export out out_export",
        'next: prune-jax predict out --text "..."',
        "next: prune-jax compare out OTHER_RUN",
        "results in out (61 s)",
    ):
        assert part in text
    lenet = SimpleNamespace(inputs=("image",))
    dense = telling.closing_lines(SUMMARY | {"best_sparsity": 0.0, "sparsity": 0.0}, Path("out"), lenet)
    assert not any("weights" in line or "baseline" in line for line in dense)
    assert "next: prune-jax export out out_export --format=stablehlo" in dense


@pytest.mark.usefixtures("parses")
def test_the_commands_that_a_run_recommends_are_understood(tmp_path):
    lines = telling.closing_lines(SUMMARY, tmp_path / "out", SimpleNamespace(inputs=("input_ids",)))
    recommended = [shlex.split(line)[2:] for line in lines if line.startswith("next: ")]
    assert len(recommended) == 4
    for name, *words in recommended:
        with pytest.raises(_Parsed) as parsed:
            importlib.import_module(commands.COMMANDS[name]).main(words)
        assert not parsed.value.args[1]


@pytest.mark.slow
def test_a_run_prints_no_line_of_its_libraries(tmp_path):
    """A first run, with an empty cache of matplotlib: it used to speak of fonts."""
    command = [
        sys.executable, "launch.py", "--config=configs/lenet.py", "--config.pruning.method=magnitude",
        "--config.pruning.start_epoch=1", "--config.pruning.sparsity_steps=50", "--config.train.epochs=3",
        f"--workdir={tmp_path / 'run'}", f"--config.data.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    environ = os.environ | {"MPLCONFIGDIR": str(tmp_path / "mpl"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and done.stderr == ""
    said = done.stdout
    assert "compiling the training step for batches of 256 x " in said
    assert "accuracy before the cut 0." in said and ", after it 0." in said


@pytest.mark.parametrize(
    ("closed", "structure", "scope", "told"),
    [
        (99.9, "unstructured", "local", "classifier/kernel has 32"),
        (90, "unstructured", "local", ""),
        (99.9, "unstructured", "global", ""),
        (99.9, "ffn", "global", "beyond what ffn saves while each group keeps a unit: layer_0.ffn"),
        (90, "ffn", "global", ""),
    ],
)
def test_what_a_target_closes_whole_is_named(closed, structure, scope, told, small_config):
    """99.9 % of a head of 16 x 2 weights are all 32 of them; of 512, 511."""
    small_config.pruning.method, small_config.pruning.scope = "magnitude", scope
    small_config.pruning.structure, small_config.pruning.sparsity_steps = structure, (closed,)
    small_config.model.num_layers = 2  # one of two groups may be emptied at 99.9 %
    config, _ = inputs.resolve(small_config, {})
    model = models.create(config, BUILTIN_TASKS["single"], 40)
    gates = units.gate_shapes(model, structure)
    plan = state.make_plan(model, gates, structure, scope)
    notes = telling.closed_whole((model, methods.from_config(config), plan), config)
    assert len(notes) == bool(told)
    assert not told or told in notes[0]
    assert structure != "unstructured" or not told or "ffn" not in notes[0]
