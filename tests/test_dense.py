"""The dense run of the same length: found beside a run, or its command recommended."""

import json
import shlex

import pytest

from prune_jax import config as config_lib
from prune_jax.run import dense, inputs, launch, telling

SUMMARY = {"metric_name": "accuracy", "best_metric": 0.9, "epochs": 4, "steps": 40, "sparsity": 0.0}
FLAGS = ["--config=configs/quickstart.py", "--config.train.epochs=4"]


@pytest.fixture
def run(tmp_path, small_config):
    """(name, method, changed keys, changed entries of the summary, the data's hash) -> a finished run's folder."""

    def make(name, method="baseline", keys=None, summary=None, data="a"):
        config = small_config.copy_and_resolve_references()
        config.pruning.method = method
        for key, value in (keys or {}).items():
            room, leaf = key.split(".")
            config[room][leaf] = value
        folder = tmp_path / name
        folder.mkdir()
        resolved, _ = inputs.resolve(config, {})
        for file, content in (
            ("config.json", config_lib.to_json(resolved)),
            ("summary.json", SUMMARY | {"method": method} | (summary or {})),
            ("provenance.json", {"command": ["launch.py", *FLAGS]}),
            ("data.json", {"sha256": data}),
        ):
            (folder / file).write_text(json.dumps(content))
        return folder

    return make


def test_the_dense_run_of_the_same_length_is_found_whatever_the_pruning_was(run):
    own = run("own", "spt", {"spt.epsilon": 0.2, "pruning.scope": "global"}, {"sparsity": 0.75})
    assert dense.neighbour(own) is None  # not the run itself
    found = run("zeros", "magnitude", {"pruning.sparsity_steps": (0,), "train.seed": 3}, {"best_metric": 0.8})
    assert dense.neighbour(own) == dense.Dense(found, 0.8, 3, False)
    told = telling._against_dense("accuracy", 0.75, own)
    assert told == f"a dense run of the same length has accuracy 0.8000 (-0.0500): {found}, seed 3"
    best = run("baseline")  # the same seed comes first
    assert dense.neighbour(own) == dense.Dense(best, 0.9, 0, True)


OTHERS = {
    "longer": {"keys": {"train.epochs": 5}, "summary": {"epochs": 5, "steps": 50}},
    "stopped early": {"summary": {"epochs": 3, "steps": 30}},
    "another rate": {"keys": {"train.learning_rate": 1.0}},
    "another network": {"keys": {"model.d_ff": 16}},
    "another task": {"keys": {"data.task": "pair"}},
    "other rows under the same name": {"data": "b"},
    "another metric": {"summary": {"metric_name": "f1"}},
    "pruned": {"method": "magnitude", "summary": {"sparsity": 0.5}},
    "another method's training": {"method": "sws"},
    "no number": {"summary": {"best_metric": None}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_no_dense_level(name, run):
    own = run("own", "magnitude", summary={"sparsity": 0.75})
    run("other", **OTHERS[name])
    (own.parent / "broken").mkdir()
    (own.parent / "broken" / "summary.json").write_text("[]")
    assert dense.neighbour(own) is None


def test_the_recommended_command_is_the_runs_own_and_dense(run):
    own = run("own", "magnitude", {"oneshot.method": "wanda"}, {"sparsity": 0.75})
    given = ["launch.py", *FLAGS, "--config.pruning.method=magnitude", "--workdir", "elsewhere"]
    (own / "provenance.json").write_text(json.dumps({"command": given}))
    words = shlex.split(dense.command(own))
    flags = [word.partition("=")[0] for word in words[2:]]
    assert len(set(flags)) == len(flags) == len(FLAGS) + 3 and "elsewhere" not in words
    assert words[:2] == ["python", "launch.py"] and words[2:4] == FLAGS
    arguments = launch.parse(words[2:])
    assert arguments.workdir == f"{own}_dense"
    config = arguments.config
    assert (config.pruning.method, config.oneshot.method, config.train.epochs) == ("baseline", "", 4)
