"""Runs many experiments and shows them side by side.

    python -m prune_jax.sweep -p baseline,magnitude,movement,spt -t rte,mrpc --seeds 0,1,2 -parallel

Exit code: 0 all runs succeeded, 1 some failed, 2 a mistake in the flags, 128 + the signal's number when interrupted.
"""

import shlex
import sys
from pathlib import Path

from prune_jax import compare
from prune_jax.errors import UserError
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


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    try:
        args, made = plan.make(sys.argv[1:] if argv is None else argv)
        print("\n".join(made.lines), flush=True)
        if args.dry_run:
            for run in made.runs:
                print(f"{run.name}{' (done)' if pool.is_finished(run) else ''}\n  {shlex.join(run.command)}")
            return 0
        out = Path(args.out)
        launcher = _launcher(args, len(made.runs))
        out.mkdir(parents=True, exist_ok=True)
    except UserError as error:
        print(f"sweep: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        print(f"sweep: cannot use --out {args.out!r}: {error.strerror or error}", file=sys.stderr, flush=True)
        return 2
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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before or after the runs, which answer it themselves
        sys.exit(130)
