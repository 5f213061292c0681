"""A run of two processes of four devices each: the numbers of one process of eight, and what ends one ends both."""

import json
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, devices

from configs import common
from prune_jax import config as config_lib
from prune_jax import report
from prune_jax.errors import LeftAlone, UserError
from prune_jax.run import checkpoint, processes

PROGRAM = """
import json, os, signal, sys
import jax
import orbax.checkpoint as ocp
from prune_jax import config as config_lib
from prune_jax.data import batching
from prune_jax.errors import Stopped, UserError
from prune_jax.run import inputs, train

cases, job, own = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
batches, load, handler = batching.train_batches, inputs.load_data, ocp.StandardCheckpointHandler
restore, damaged = handler.restore, []

def until(step):
    def some(*args):
        for number, batch in enumerate(batches(*args), 1):
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch
    return some

def refuse(config):
    raise UserError("no such data here")

def fail_once(*args, **kwargs):  # as a damaged part of an array does that one process alone reads
    damaged.append(args)
    if len(damaged) == 1:
        raise ValueError("no such chunk here")
    return restore(*args, **kwargs)

for case in cases:
    mine = case.get("befalls", {}).get(own, {})  # what befalls this process alone
    config = config_lib.from_json(case["config"])
    config.unlock()
    config.distributed.update(job)
    config.update_from_flattened_dict(mine.get("changes", {}))
    batching.train_batches = until(mine["signal"]) if "signal" in mine else batches
    inputs.load_data = refuse if "data" in mine else load
    handler.restore = fail_once if "damage" in mine else restore
    try:
        train.train_and_evaluate(config, case["workdir"])
        print("end", flush=True)
    except (Stopped, UserError) as error:
        print("end", type(error).__name__, error, flush=True)
"""


def started(cases, number: int, job: dict) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, json.dumps(cases), json.dumps(job), str(job.get("process_id", 0))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | devices(number), **pipes)


def ends(process) -> list[str]:
    """What became of each case: "", or the name and the text of what was raised."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return [line.removeprefix("end").strip() for line in out.splitlines() if line.startswith("end")]


def in_two(cases) -> list[list[str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        job = {"coordinator": f"localhost:{free.getsockname()[1]}", "num_processes": 2}
    both = [started(cases, 4, job | {"process_id": number}) for number in range(2)]
    try:
        return [ends(process) for process in both]
    finally:
        for process in both:
            process.kill()


def case(config, workdir, befalls=None, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return {"config": config_lib.to_json(config), "workdir": str(workdir), "befalls": befalls or {}}


@pytest.fixture
def tiny(small_config):
    """A LeNet, which compiles in a second; each process holds a half of every kernel."""
    small_config.model.name, small_config.data.task = "lenet_300_100", "digits"
    small_config.model.widths = (64, 16)
    small_config.data.max_train_examples, small_config.data.holdout = 96, 32
    small_config.train.epochs, small_config.pruning.sparsity_steps = 2, (50,)
    small_config.mesh.data, small_config.mesh.fsdp = 1, 8
    small_config.pruning.scope = "global"
    return small_config


def check_equal(two, one):
    """The same gates, and the same numbers but for the order of sums."""
    (params, gates), (wanted, open_) = (checkpoint.read_network(run / "checkpoints", "last") for run in (two, one))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, gates, open_)))
    assert not all(jax.tree.leaves(jax.tree.map(np.all, gates)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), params, wanted)
    for ours, theirs in zip(report.read_metrics(two), report.read_metrics(one), strict=True):
        assert ours.keys() == theirs.keys() and ours["sparsity"] == theirs["sparsity"]
        np.testing.assert_allclose([ours["train_loss"], ours["eval_loss"]], [theirs["train_loss"], theirs["eval_loss"]],
                                   rtol=1e-3)  # fmt: skip
    summaries = [json.loads((run / "summary.json").read_text()) for run in (two, one)]
    assert summaries[0]["layer_sparsity"] == summaries[1]["layer_sparsity"]
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_and_end_together(tiny, tmp_path):
    """What one of them meets ends both with its message, and a checkpoint of two is resumed by one."""

    def cases(folder):
        begin = str(folder / "movement")
        start = {"model__init_from": begin, "model__init_checkpoint": "last", "distill__teacher": begin}
        start |= {"distill__checkpoint": "last", "pruning__structure": "hidden", "pruning__method": "magnitude"}
        start |= {"train__checkpoint_every": 1}
        shot = {"oneshot__method": "wanda", "oneshot__sparsity": 0.25, "oneshot__examples": 8}
        prior = {"sws__pi0": 0.1, "sws__deviation": 0.05, "train__epochs": 1}
        return [
            case(tiny, begin, pruning__method="movement"),
            case(tiny, folder / "spt", pruning__method="spt", spt__epsilon=0.1, **shot),
            case(tiny, folder / "sws", pruning__method="sws", **prior),
            case(tiny, folder / "magnitude", befalls={"1": {"signal": 3}}, **start),
            case(tiny, folder / "magnitude", befalls={"1": {"signal": 1, "damage": True}}, **start),
        ]

    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "notes.txt").write_text("mine")
    refused = [
        case(tiny, tmp_path / "none", befalls={"1": {"data": True}}),
        case(tiny, tmp_path / "none", befalls={"1": {"changes": {"train.seed": 7}}}),
        case(tiny, tmp_path / "strange"),
    ]
    two, one = tmp_path / "two", tmp_path / "one"
    first, second = in_two([*refused, *cases(two)])
    assert first[0] == "UserError process 1 of 2: no such data here" and second[0] == "UserError no such data here"
    assert first[1] == second[1] and "differ in their data, their config or their workdir" in first[1]
    assert "not a run of this program" in first[2] and "process 0 of 2: the workdir" in second[2]
    assert not (tmp_path / "none").exists() and [p.name for p in (tmp_path / "strange").iterdir()] == ["notes.txt"]
    assert first[3:] == second[3:] and first[3:6] == [""] * 3
    stops = [int(re.match(r"Stopped stopped by SIGTERM after step (\d);", end)[1]) for end in first[6:]]
    assert stops[0] in (3, 4) and stops[1] <= stops[0] + 1  # the second starts from the save before the first's last
    log = (two / "magnitude" / "run.log").read_text()
    assert "in 2 processes" in log and f"resuming after 0 epochs and {stops[0] - 1} steps" in log
    assert not (two / "magnitude" / "metrics.csv").read_text()

    resumed = cases(two)[-1]
    alone = [*cases(one)[:-1], resumed]
    for one_case in alone:
        one_case["befalls"] = {}
    assert ends(started(alone, 8, {})) == [""] * 5
    assert "resuming after 0 epochs" in (two / "magnitude" / "run.log").read_text()
    for name in ("movement", "spt", "magnitude"):
        check_equal(two / name, one / name)
    quantised = [np.load(run / "sws" / "records" / "quantised.npz")["weights"] for run in (two, one)]
    assert len(np.unique(quantised[0])) > 4
    assert np.mean(~np.isclose(*quantised, rtol=1e-3, atol=1e-4)) < 0.005


@pytest.mark.parametrize(
    ("says", "processes_of_the_job", "kind"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:85", 2, LeftAlone),
        ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)", 2, LeftAlone),
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:85", 1, jax.errors.JaxRuntimeError),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes", 2, jax.errors.JaxRuntimeError),
    ],
)
def test_a_process_whose_others_do_not_answer_says_so(says, processes_of_the_job, kind, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes_of_the_job)
    expected = "another process of this job has ended" if kind is LeftAlone else says[:20]
    with pytest.raises(kind, match=expected) as raised, processes.leaving():
        raise jax.errors.JaxRuntimeError(says)
    assert getattr(raised.value, "exit_code", None) == (75 if kind is LeftAlone else None)


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False),  # the script of sbatch --ntasks=2
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
    ],
)
def test_a_job_is_found_where_there_are_several_tasks(environ, found):
    assert processes.found(environ) is found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinator": "node1"}, "config.distributed.coordinator is 'node1'; allowed: host:port"),
        ({"coordinator": "node1:99999"}, "config.distributed.coordinator is 'node1:99999'; allowed: host:port"),
        ({"num_processes": 2}, "config.distributed.num_processes is 2; allowed: 1 without an address"),
        ({"process_id": 1}, "config.distributed.process_id is 1; allowed: 0 without an address"),
        (
            {"coordinator": "node1:12", "num_processes": 2, "process_id": 2},
            "config.distributed.process_id is 2; allowed: 0 to 1",
        ),
    ],
)
def test_a_job_that_cannot_be(changes, message):
    config = common.get_config()
    config.distributed.update(changes)
    with pytest.raises(UserError, match=re.escape(message)):
        config_lib.resolve(config)
