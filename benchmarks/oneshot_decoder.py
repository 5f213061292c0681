"""Perplexity of a decoder pruned in one shot: methods by sparsities and n:m, through the command prune-jax oneshot.

    python -m benchmarks.oneshot_decoder CHECKPOINT TEXT --out=LINES.jsonl [--examples=32] [--length=512] [--most=N]

The text's first nine tenths are pruned on, the last tenth is evaluated. A line is a network, and those that are in the
file already are not measured again.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import harness

CASES = (("unstructured", 0.5), ("unstructured", 0.6), ("2:4", 0.5), ("4:8", 0.5))
METHODS = ("sparsegpt", "wanda", "magnitude")
ALL = [(method, *case, "local", False) for case, method in itertools.product(CASES, METHODS)]
ALL[3:3] = [("sparsegpt", "unstructured", sparsity, "global", True) for sparsity in (0.5, 0.6)]
NAMES = ("method", "structure", "sparsity", "scope", "correct")
KEPT = ("metric_before", "metric_after", "evaluated_tokens", "seconds", "nonzero_weights", "weights")


def main() -> None:
    """Measures the lines that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--most", type=int, default=1000, help="lines to measure in this call")
    args = parser.parse_args()
    done = harness.read(args.out)
    size = {"examples": args.examples, "length": args.length}
    cases = [dict(zip(NAMES, case, strict=True)) | size for case in ALL]
    missing = [case for case in cases if not any(case.items() <= line.items() for line in done)]
    for case in missing[: args.most]:
        with tempfile.TemporaryDirectory() as scratch:
            out, start = Path(scratch) / "out", time.monotonic()
            flags = [f"--{name}={value}" for name, value in case.items() if name != "correct"]
            flags += [f"--data={args.text}", *(["--correct"] if case["correct"] else [])]
            command = [sys.executable, "-m", "prune_jax", "oneshot", str(args.checkpoint), str(out), *flags]
            _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
            if status:
                raise SystemExit(f"it ended with {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
            summary = json.loads((out / "oneshot.json").read_text())
            shutil.rmtree(out)
        line = case | {name: summary[name] for name in KEPT} | {"whole_seconds": round(time.monotonic() - start, 1)}
        line |= {"peak_gib": round(usage.ru_maxrss / 2**20, 2)}
        line |= {"error": max(layer["error"] for layer in summary["layers"])}
        harness.add(args.out, **line)


if __name__ == "__main__":
    main()
