"""Many short runs in one sweep: the memory and the open files of its process after each, and the size of the report.

    python -m benchmarks.soak --folder=FOLDER [--runs=200] [--out=LINES.jsonl]

Runs are of a small transformer on the built-in data, magnitude and movement over as many seeds as it takes. The process
of the sweep is looked at in /proc once per finished run; what its runs take goes with each of their processes. Stopped
and started again, the sweep goes on where it was, and the line tells of how many runs the last process saw.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import harness

_SMALL = {
    "data.builtin_train_size": 200, "data.builtin_eval_size": 50, "model.d_model": 16, "model.d_ff": 32,
    "model.num_heads": 2, "model.num_layers": 1, "train.epochs": 2, "pruning.start_epoch": 0, "pruning.end_epoch": 1,
}  # fmt: skip


def looked_at(process: int) -> dict[str, float]:
    """{"mib": resident memory, "files": open files, "threads"} of a process, of Linux."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    files = len(os.listdir(f"/proc/{process}/fd"))
    return {"mib": int(status["VmRSS"].split()[0]) / 1024, "files": files, "threads": int(status["Threads"])}


def main() -> None:
    """Runs the sweep, and prints and appends a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the sweep")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seeds = ",".join(map(str, range(args.runs // 2)))
    flags = [part for key, value in _SMALL.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "prune_jax", "sweep", "--config=configs/quickstart.py", "-p", "magnitude,movement",
               "--seeds", seeds, *flags, "--out", str(args.folder), "--progress=logs"]  # fmt: skip
    start, seen, done = time.monotonic(), [], -1
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(args.folder.with_suffix(".log"), "a") as log:
        sweep = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while sweep.poll() is None:
            finished = len(list(args.folder.glob("results_*/summary.json")))
            if finished > done:
                seen.append(looked_at(sweep.pid))
                done = finished
            time.sleep(1)
    if sweep.returncode:
        raise SystemExit(f"the sweep ended with {sweep.returncode}; its log is {log.name}")
    tenth = max(len(seen) // 10, 1)
    line: dict = {"runs": done, "seen": len(seen), "seconds": round(time.monotonic() - start)}
    for name in seen[0]:
        values = [each[name] for each in seen[1:]]  # the first look may be at a process that still loads
        line[name] = {"first_tenth": round(float(np.median(values[:tenth])), 1), "most": round(max(values), 1),
                      "last_tenth": round(float(np.median(values[-tenth:])), 1)}  # fmt: skip
    line["report_kib"] = round((args.folder / "report.html").stat().st_size / 1024)
    print(line)
    if args.out:
        harness.add(args.out, **line)


if __name__ == "__main__":
    main()
