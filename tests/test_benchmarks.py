"""The benchmarks run: each at a tiny size where it has one, and each says what it takes."""

import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prune_jax as pj
from benchmarks import credit, field, harness
from prune_jax import config as config_lib
from prune_jax.pruning import plan as plan_lib
from prune_jax.pruning.method import PruneInfo

TINY = {  # benchmark: arguments under which it takes seconds
    "close_gates": ["--size=800", "--repeats=1"],
    "mixture": ["--size=16384", "--components=3", "--repeats=1"],
    "prune_step": ["--width=16", "--kernels=2", "--batch=4", "--repeats=1", "--clip"],
    "codec": ["--layers=ffn", "--sparsities=0.98", "--entries=4"],
}
LONG = [
    "credit",
    "field",
    "first_closing",
    "gated_step",
    "kills",
    "latency_target",
    "oneshot_calibration",
    "oneshot_decoder",
    "program_cut",
    "spt_step",
]
WITH_TORCH = ["inference", "oneshot_layer", "train_step"]


def run(name, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    importlib.import_module(f"benchmarks.{name}").main()


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_at_a_tiny_size(name, monkeypatch, capsys):
    run(name, TINY[name], monkeypatch)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines
    assert all(line["benchmark"] == name and line["versions"]["jax"] == jax.__version__ for line in lines)


@pytest.mark.parametrize("name", [*LONG, *WITH_TORCH])
def test_a_benchmark_says_what_it_takes(name, monkeypatch, capsys):
    if name in WITH_TORCH:
        pytest.importorskip("torch")
    with pytest.raises(SystemExit) as stopped:
        run(name, ["--help"], monkeypatch)
    assert stopped.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("gated_step", ["--geometries=tiny", "--rows=2", "--repeats=1"]),
        (
            "credit",
            ["--variants=control_variate", "--ablate=exploration", "--seeds=0", "--levels=90", "--rise", "--hold=0"],
        ),
    ],
)
def test_a_long_benchmark_runs(name, arguments, monkeypatch, capsys):
    run(name, arguments, monkeypatch)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {line["benchmark"] for line in lines} == {name}


# Leaving a part of SPT out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "closed"), [(None, [1]), ("exploration", [0]), ("first_order", [2])], ids=["whole", "first", "explored"]
)
def test_an_ablated_order_is_that_of_the_other_part(part, closed):
    method = pj.spt(control_variate=True)
    method = credit.ablated(method, part) if part else method
    params, gates = {"kernel": jnp.ones((1, 4))}, {"kernel": jnp.ones((1, 4), bool)}
    plan = plan_lib.make(gates)
    state = method.init(params, gates, plan)
    state["first_order"] = {"kernel": jnp.array([[0.0, 1.0, 5.0, 9.0]])}
    state["scores"] = {"kernel": jnp.array([[6.0, 1.0, 0.0, 9.0]])}
    info = PruneInfo(jax.random.key(0), jnp.int32(1), params, gates, {}, state, jnp.float32(0.25), True, plan)
    assert np.flatnonzero(~method.prune(info).gates["kernel"][0]).tolist() == closed


def test_layers_without_exploration_share_one_curvature():
    method = credit.ablated(pj.spt(credit="layer"), "exploration")
    params = {"a": {"kernel": jnp.array([[1.0, 2.0, 3.0, 9.0]])}, "b": {"kernel": jnp.array([[1.5, 4.0, 5.0, 9.0]])}}
    gates = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
    plan = plan_lib.make(gates)
    state = method.init(params, gates, plan)
    state |= {"importance": jnp.array([1.0, 1e6]), "squares": jnp.ones(2), "explored": jnp.ones(2, bool)}
    info = PruneInfo(jax.random.key(0), jnp.int32(1), params, gates, {}, state, jnp.float32(0.375), True, plan)
    pruned = method.prune(info).gates
    assert [np.flatnonzero(~pruned[name]["kernel"][0]).tolist() for name in ("a", "b")] == [[0, 1], [0]]


def test_what_has_no_such_part_cannot_be_ablated(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run("credit", ["--ablate=first_order", "--variants", "literal"], monkeypatch)
    assert "literal has none; allowed: control_variate," in capsys.readouterr().err
    assert "magnitude_global" not in credit.ablatable("exploration")


# The field, over days ------------------------------------------------------------------------------------------------


def test_the_fields_rows_are_measured_once(tmp_path, monkeypatch):
    asked = []

    def trained(config, folder):
        asked.append((config.pruning.method, round(100 * config.pruning.end_sparsity), config.distill.teacher))
        config.model.init_from = ""  # what is there says nothing else about the keys
        config_lib.resolve(config, {})
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"steps": 4, "model_size": "tiny", "metric_name": "accuracy", "seconds": 1.0}

    epochs = [{"step": 4, "sparsity": 0.9, "eval_metric": 0.7, "eval_f1": 0.8}]
    monkeypatch.setattr(field.train, "train_and_evaluate", trained)
    monkeypatch.setattr(field.report, "read_metrics", lambda folder: epochs)
    (tmp_path / "glue").mkdir()
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    arguments = [f"--dir={tmp_path / 'glue'}", "--init_from=somewhere", "--levels=90", f"--out={out}", f"--rows={rows}"]
    with pytest.raises(KeyboardInterrupt):
        run("field", arguments, monkeypatch)
    assert [row["method"] for row in harness.read(rows)] == ["dense", "gmp"]
    run("field", arguments, monkeypatch)
    found = harness.read(rows)
    assert [row["method"] for row in found] == ["dense", *field.METHODS]
    assert asked[2] == asked[3]  # the one that was stopped, and none of those before it
    assert len(asked) == len(found) + 1
    assert {teacher for _, _, teacher in asked[1:]} == {str(out / "mrpc_dense_dense_0")}
    assert {end for _, end, _ in asked[1:]} == {90}
    assert found[1]["metrics"] == {"accuracy": 0.7, "f1": 0.8}
