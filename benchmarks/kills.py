"""Kills commands at random moments and asks whether the same command ends with the same results, bit for bit.

    python -m benchmarks.kills [--kinds magnitude movement ...] [--kills=10] [--seed=0] [--out=LINES.jsonl]

A command is left alone once, for its result and its duration. Then it starts with another folder to write and is killed
by SIGKILL after a random share of that duration, as often as asked, before it may end. Of a sweep the parent is killed.
A kind is a run by a method, `start` a run that is pruned in one shot before its first step, or one of the
commands sweep, oneshot and export; the last two read an export and a run that are made first. One JSON line per
kind: how many kills fell where, by the last line of the log, and whether the results are equal.
"""

import argparse
import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import harness

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("magnitude", "movement", "spt", "sws", "start", "sweep", "oneshot", "export")
_SMALL = {
    "data.builtin_train_size": 600, "data.builtin_eval_size": 100, "model.d_model": 32, "model.d_ff": 64,
    "model.num_heads": 2, "train.epochs": 4, "train.checkpoint_every": 7, "pruning.start_epoch": 1,
}  # fmt: skip


_TIMED = ("README.md", "oneshot.json")  # of an export or a pruned checkpoint: they hold seconds and paths


def command(kind: str, folder: Path, source: Path) -> list[str]:
    """The command of a kind that writes to `folder`; `source` holds the run and the export that some kinds read."""
    base = [sys.executable, "-u", "-m", "prune_jax"]
    if kind == "export":
        return [*base, "export", str(source / "run"), str(folder)]
    if kind == "oneshot":
        flags = ["--config.data.source=builtin", "--config.data.task=single", "--examples=64"]
        return [*base, "oneshot", str(source / "export"), str(folder), *flags]
    if kind == "sweep":
        flags = [part for key, value in _SMALL.items() for part in ("--set", f"{key}={value}")]
        return [*base, "sweep", "--config=configs/quickstart.py", "-p", "magnitude", "--seeds=0,1", *flags,
                "--out", str(folder), "--progress=logs"]  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in _SMALL.items()]
    method = "magnitude" if kind == "start" else kind
    if kind == "start":
        flags += ["--config.oneshot.method=sparsegpt", "--config.oneshot.sparsity=0.3"]
    if kind == "sws":  # weights are of 0.02, and in so short a run some are to be left
        flags += ["--config.sws.deviation=1e-3", "--config.sws.mean_range=0.05"]
    return [*base, "train", "--config=configs/quickstart.py", f"--config.pruning.method={method}", *flags,
            f"--workdir={folder}"]  # fmt: skip


def started(kind: str, folder: Path, source: Path, log: Path) -> subprocess.Popen:
    """The process of a command, its output in `log`."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with open(log, "ab") as file:
        return subprocess.Popen(command(kind, folder, source), cwd=ROOT, stdout=file, stderr=file, env=environment)


def result(folder: Path) -> dict[str, str]:
    """What a command has left, by file, without what a clock decides."""
    from prune_jax import report
    from prune_jax.run import checkpoint

    found = {}
    for path in folder.iterdir() if (folder / "model.safetensors").exists() else ():
        if path.name not in _TIMED:
            found[path.name] = path.read_bytes().hex()
    for path in sorted(folder.rglob("metrics.csv")):
        run, name = path.parent, str(path.parent.relative_to(folder))
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in report.read_metrics(run)]
        found[f"{name}/metrics"] = repr(rows)
        found[f"{name}/layers"] = (run / "layers.csv").read_text()
        for kind in sorted(path.name for path in (run / "checkpoints").iterdir()):
            trees = checkpoint.read_network(run / "checkpoints", kind)
            found[f"{name}/{kind}"] = json.dumps([_bytes(tree) for tree in trees])
    return found


def _bytes(tree):
    return {k: _bytes(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree).tobytes().hex()


def moment(log: Path) -> str:
    """Where a run was when it died, in a word or two: the last line of its log without its numbers."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return re.split(r"\s{2,}|\d", lines[-1])[0].strip() if lines else "start"


def measure(kind: str, kills: int, rng: random.Random, folder: Path, source: Path) -> dict:
    """Runs a command with and without kills in `folder`; what became of it."""
    begin = time.monotonic()
    code = started(kind, folder / "whole", source, folder / "whole.log").wait()
    duration, wanted = time.monotonic() - begin, result(folder / "whole")
    moments: collections.Counter[str] = collections.Counter()
    log, done = folder / "parts.log", 0
    while done < kills:
        process = started(kind, folder / "parts", source, log)
        try:
            process.wait(rng.uniform(0.05, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            moments[moment(log)] += 1
        else:
            if process.returncode != code or result(folder / "parts") != wanted:
                break
            duration *= 0.7  # it ended before it was killed: what the first run compiled has made it fast
        if (folder / "parts").exists() and result(folder / "parts") == wanted:  # nothing is left to do: once more
            (folder / "parts").rename(folder / f"parts{time.monotonic_ns()}")
    last = started(kind, folder / "parts", source, log).wait()
    found = result(folder / "parts")
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return {"kind": kind, "kills": done, "seconds": round(duration, 1), "codes": [code, last],
            "compared": len(wanted), "differing": differing, "moments": dict(moments)}  # fmt: skip


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the lines go; without it, the standard output")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as made:
        source = Path(made)
        if {"oneshot", "export"} & set(args.kinds):
            for kind, name in (("magnitude", "run"), ("export", "export")):
                assert started(kind, source / name, source, source / "log").wait() == 0, (source / "log").read_text()
        for kind in args.kinds:
            with tempfile.TemporaryDirectory() as folder:
                line = measure(kind, args.kills, rng, Path(folder), source) | {"seed": args.seed}
            if args.out:
                harness.add(args.out, benchmark="kills", **line)
            else:
                harness.report(benchmark="kills", **line)


if __name__ == "__main__":
    main()
