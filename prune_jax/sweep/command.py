"""Runs many experiments and shows them side by side.

    prune-jax sweep -p baseline,magnitude,movement,spt -t rte,mrpc --seeds 0,1,2 -parallel

A flag takes one value or several, separated by commas. Every combination of the values is a run. The same command again
resumes what was interrupted and skips what is done.

Exit code: 0 all runs succeeded, 1 some failed, 2 a mistake in the flags, 128 + the signal's number when interrupted.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from prune_jax.errors import UserError
from prune_jax.report import compare
from prune_jax.run import workdir as workdir_lib
from prune_jax.sweep import launchers, plan, pool
from prune_jax.sweep.view import View


def _launcher(args, runs: int) -> launchers.Launcher:
    asked = int(args.max_parallel_jobs) if args.max_parallel_jobs else None
    if args.launcher == "processes":
        own = len(launchers.gpus()) or len(launchers.cores())
        return launchers.Processes(max(1, min(runs, asked or (own if args.parallel else 1))))
    parameters = {}
    for text in args.slurm:
        key, _, value = text.partition("=")
        parameters[key] = int(value) if value.isdecimal() else value
    cluster = args.launcher.removeprefix("submitit-")
    return launchers.Submitit(Path(args.out), cluster, max(1, runs), asked, parameters)


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    try:
        args, made = plan.make(argv, __doc__)
        print("\n".join(made.lines), flush=True)
        if args.dry_run:
            for run in made.runs:
                done = pool.is_finished(run) and not pool.why_again(run)
                print(f"{run.name}{' (done)' if done else ''}\n  {shlex.join(run.command)}")
            return 0
        out = Path(args.out)
        launcher = _launcher(args, len(made.runs))
        out.mkdir(parents=True, exist_ok=True)
        workdir_lib.lock(Path(os.path.realpath(out)), args.out, "--out")  # two sweeps would each summarise their half
    except OSError as error:
        raise UserError(f"cannot use --out {args.out!r}: {error.strerror or error}") from error
    jobs, signal_number = pool.execute(made.runs, out / "logs", launcher, View(args.progress), float(args.grace))
    failed = [job for job in jobs if job.state == "failed"]
    for job in failed:
        print(f"failed    {job.run.name}: {(job.tail() or ['no output'])[-1]}", flush=True)
    finished = [job.run.folder for job in jobs if job.state == "finished"]
    if finished:
        unfinished = {job.run.name: job.state for job in jobs if job.state != "finished"}
        try:
            compare.write(finished, out, unfinished, title=f"Sweep {out.resolve().name}")
        except UserError as error:
            print(f"sweep: the runs are in order, but their comparison failed: {error}", file=sys.stderr, flush=True)
            return 1
    if signal_number is not None:
        print("interrupted; the same command resumes what is unfinished and skips what is done", flush=True)
        return 128 + signal_number
    return 1 if failed else 0
