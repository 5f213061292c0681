"""Kills runs at random moments and asks whether the same command ends with the same weights and metrics, bit for bit.

    python -m benchmarks.kills [--methods=magnitude,movement,spt,sws,sweep] [--kills=10] [--seed=0]

A run is left alone once, for its result and its duration. Then the same command starts in another folder and is killed
by SIGKILL after a random share of that duration, as often as asked, before it may end. Of a sweep the parent is killed.
One JSON line per method: how many kills fell where, by the last line of the log, and whether the results are equal.
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
METHODS = ("magnitude", "movement", "spt", "sws", "sweep")
_SMALL = {
    "data.builtin_train_size": 600, "data.builtin_eval_size": 100, "model.d_model": 32, "model.d_ff": 64,
    "model.num_heads": 2, "train.epochs": 4, "train.checkpoint_every": 7, "pruning.start_epoch": 1,
}  # fmt: skip


def command(method: str, folder: Path) -> list[str]:
    """The command of a run, or of a sweep of two, that writes to `folder`."""
    base = [sys.executable, "-u", "-m", "prune_jax"]
    if method == "sweep":
        flags = [part for key, value in _SMALL.items() for part in ("--set", f"{key}={value}")]
        return [*base, "sweep", "--config=configs/quickstart.py", "-p", "magnitude", "--seeds=0,1", *flags,
                "--out", str(folder), "--progress=logs"]  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in _SMALL.items()]
    if method == "sws":  # weights are of 0.02, and in so short a run some are to be left
        flags += ["--config.sws.deviation=1e-3", "--config.sws.mean_range=0.05"]
    return [*base, "train", "--config=configs/quickstart.py", f"--config.pruning.method={method}", *flags,
            f"--workdir={folder}"]  # fmt: skip


def started(method: str, folder: Path, log: Path) -> subprocess.Popen:
    """The process of a run, its output in `log`."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with open(log, "ab") as file:
        return subprocess.Popen(command(method, folder), cwd=ROOT, stdout=file, stderr=file, env=environment)


def result(folder: Path) -> dict[str, str]:
    """What a run or a sweep has left, by file, without what a clock decides."""
    from prune_jax import report
    from prune_jax.run import checkpoint

    found = {}
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


def measure(method: str, kills: int, rng: random.Random, folder: Path) -> dict:
    """Runs a method with and without kills in `folder`; what became of it."""
    begin = time.monotonic()
    code = started(method, folder / "whole", folder / "whole.log").wait()
    duration, wanted = time.monotonic() - begin, result(folder / "whole")
    moments: collections.Counter[str] = collections.Counter()
    log, done = folder / "parts.log", 0
    while done < kills:
        process = started(method, folder / "parts", log)
        try:
            process.wait(rng.uniform(0.05, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            moments[moment(log)] += 1
            continue
        if process.returncode != code or result(folder / "parts") != wanted:
            break
        # It ended before it was killed, so what the first run compiled has made it fast: once more from the start.
        (folder / "parts").rename(folder / f"parts{time.monotonic_ns()}")
        duration *= 0.7
    last = started(method, folder / "parts", log).wait()
    equal = {name: text == result(folder / "parts").get(name) for name, text in wanted.items()}
    return {"method": method, "kills": done, "seconds": round(duration, 1), "codes": [code, last],
            "compared": len(equal), "differing": [name for name, same in equal.items() if not same],
            "moments": dict(moments)}  # fmt: skip


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for method in args.methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            harness.report(benchmark="kills", **measure(method, args.kills, rng, Path(folder)))


if __name__ == "__main__":
    main()
