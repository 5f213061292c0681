"""Searches the settings of soft weight-sharing for the smallest file at an accuracy.

    prune-jax search OUT_DIR --config=FILE [--config.KEY=VALUE ...] [--holdout=N] [--floor=METRIC] [--trials=N]
        [--timeout=SECONDS] [--seed=N] [--range KEY LOW HIGH ...]

A trial is a run of its own, OUT_DIR/trials/<n>, whose network is written as OUT_DIR/trials/<n>.pjx. All trials start
from one pretraining, the first trial's. The evaluation splits are never read: held-out training examples stand in for
them. Optuna proposes the values, by its tree-structured Parzen estimator.

OUT_DIR/best.json holds the best trial so far. The same command goes on with the study in OUT_DIR/study.journal. A trial
whose loss does not stay finite is given up. Any other failure ends the search, with the end of OUT_DIR/logs/<n>.log.
"""

import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.errors import Diverged, Stopped, UserError
from prune_jax.run import continuing, inputs
from prune_jax.run import launch as launch_lib
from prune_jax.run import workdir as workdir_lib
from prune_jax.run.commands import arguments
from prune_jax.sweep import child

SPACE = {  # key: (least, most), searched on a logarithmic scale
    "sws.tau": (1e-3, 0.1),
    "sws.deviation": (0.05, 0.25),
    "sws.alpha": (1e2, 1e4),
    "sws.zero_beta": (0.1, 5.0),
    "sws.means_learning_rate": (3e-5, 1e-3),
    "sws.gammas_learning_rate": (1e-3, 3e-2),
    "sws.rhos_learning_rate": (1e-3, 3e-2),
    "train.learning_rate": (1e-4, 3e-3),
}


def value(metric: float, rate: float, floor: float, name: str = "") -> float:
    """The value of a trial: its compression rate, or, below the floor, the negative distance to the floor.

    So every trial that reaches the floor is better than every one that does not, and the search is led to the floor.
    With the name of a metric that is better when lower, the floor is the most that it may be.
    """
    return -abs(metric - floor) if config_lib.better(name, floor, metric) else rate


def front(trials: list[dict], name: str = "") -> list[dict]:
    """The Pareto front: the trials that no other beats in both metric and rate, the best metric first."""
    unbeaten: list[dict] = []
    sign = 1 if config_lib.better(name, 0, 1) else -1
    for trial in sorted(trials, key=lambda trial: (sign * trial["metric"], -trial["rate"])):
        if not unbeaten or trial["rate"] > unbeaten[-1]["rate"]:
            unbeaten.append(trial)
    return unbeaten


def _optuna():
    try:
        import optuna
    except ImportError as error:
        raise UserError("the search needs optuna, which is not installed: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _ranges(given: list[list[str]] | None) -> dict[str, tuple[float, float]]:
    """The search space of --range; SPACE without it."""
    if not given:
        return SPACE
    space = {}
    for key, *bounds in given:
        try:
            low, high = map(float, bounds)
        except ValueError:
            low, high = math.nan, math.nan
        if not key.startswith(("sws.", "train.")) or not 0 < low <= high < math.inf:
            raise UserError(
                f"--range {key} {' '.join(bounds)}: allowed are a key sws.* or train.learning_rate and two positive "
                "numbers, the lower one first"
            )
        space[key] = low, high
    return space


def launch(flags: Sequence[str], workdir: Path, log: Path) -> dict | None:
    """Runs one trial in a process of its own, and returns its summary; None if its loss did not stay finite.

    Args:
      flags: of `prune-jax train`, without --workdir.
      log: the file that all it prints is appended to.
    Raises:
      UserError: the run refuses the flags or the data; the message is its own.
      Stopped: the run crashed, was killed or was stopped; the message holds the end of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        done = subprocess.run(
            [*child.TRAIN, *flags, f"--workdir={workdir}"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=child.environment(),
        )
    code = done.returncode
    if code == 0:
        return files.read_json(workdir / "summary.json")
    if code == Diverged.EXIT_CODE:
        return None
    lines = child.tail(log)
    if code == 2 and lines:
        raise UserError(lines[-1].removeprefix("train: "))
    raise Stopped("\n  ".join([f"{workdir}: {child.reason(code)}; the end of {log}:", *lines]), exit_code=1)


class _Search:
    def __init__(self, args, flags: list[str]):
        self.optuna = optuna = _optuna()
        self.out, self.floor, self.space = Path(args.out), args.floor, _ranges(args.range)
        self.flags = [*flags, f"--config.data.holdout={args.holdout}"]
        self.trials = self.out / "trials"
        self.trials.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(self.out / "study.journal"))
        )
        self.study = optuna.create_study(
            storage=storage, study_name="search", direction="maximize", load_if_exists=True
        )
        setting = {"flags": self.flags, "floor": self.floor}  # trials can be compared only if these are the same
        if self.finished() and self.study.user_attrs != setting:
            raise UserError(
                f"{self.out} holds the trials of another search, {self.study.user_attrs}; choose another folder"
            )
        self.check_ranges()
        self.check_data()
        for name, content in setting.items():
            self.study.set_user_attr(name, content)
        self.study.sampler = optuna.samplers.TPESampler(seed=args.seed + len(self.study.trials))

    def check_ranges(self) -> None:
        """UserError where the finished trials were chosen from other ranges."""
        for trial in self.study.get_trials(states=(self.optuna.trial.TrialState.COMPLETE,)):
            theirs = {key: (found.low, found.high) for key, found in trial.distributions.items()}
            for key in (*self.space, *theirs):
                if (now := self.space.get(key)) != (before := theirs.get(key)):
                    words = [
                        f"{bounds[0]:g} to {bounds[1]:g}" if bounds else "not searched" for bounds in (now, before)
                    ]
                    raise UserError(
                        f"--range of {key} is {words[0]}; the trials in {self.out} have it {words[1]}: give the same "
                        "ranges, or choose another folder"
                    )

    def check_data(self) -> None:
        """UserError where the trials so far have read other data than the same flags name now."""
        runs = [self.trials / trial["trial"] for trial in self.finished()]
        if not any(map(continuing.data_of, runs)):
            return
        config, _ = inputs.resolve(launch_lib.parse(self.flags).config)
        read = continuing.read(config)[1], continuing.networks(config)
        if why := next(filter(None, (continuing.why_not_same(run, *read) for run in runs)), ""):
            raise UserError(f"{self.out} holds the trials of another search: {why}; choose another folder")

    def requeue(self) -> None:
        """Queues the trials that an earlier process left unfinished, ahead of new ones and in their own folders.

        One whose values are outside the ranges, which may change until a trial has finished, is given up.
        The trial of a killed process is still marked as running. After Ctrl-C, Optuna marks it as failed.
        """
        state = self.optuna.trial.TrialState
        cut = {}
        for trial in self.study.trials:
            run = trial.user_attrs.get("run", str(trial.number))
            if trial.state == state.RUNNING:
                self.study.tell(trial.number, state=state.FAIL)
            if trial.state in (state.RUNNING, state.FAIL):
                cut[run] = trial.params
            else:
                cut.pop(run, None)
        for run, params in cut.items():
            ranges = [self.space.get(key, (math.inf, math.inf)) for key in params]
            if all(low <= number <= high for (low, high), number in zip(ranges, params.values(), strict=True)):
                self.study.enqueue_trial(params, user_attrs={"run": run})

    def __call__(self, trial) -> float:
        chosen = {key: trial.suggest_float(key, *bounds, log=True) for key, bounds in self.space.items()}
        name = trial.user_attrs.get("run", str(trial.number))
        trial.set_user_attr("run", name)
        flags = [*self.flags, *(f"--config.{key}={number!r}" for key, number in chosen.items())]
        pretrained = [path.parent for path in sorted(self.trials.glob(f"*/{workdir_lib.PRETRAIN}/summary.json"))]
        if pretrained and pretrained[0].parent.name != name:
            flags += [f"--config.model.init_from={pretrained[0]}", "--config.model.init_checkpoint=last"]
        summary = launch(flags, self.trials / name, self.out / "logs" / f"{name}.log")
        if summary is None:
            print(f"trial {name}: the loss did not stay finite", flush=True)
            raise self.optuna.TrialPruned
        rate = self.compress(self.trials / name, 4 * summary["num_params"])
        metric, kind = summary["final_metric"], summary["metric_name"]
        trial.set_user_attr("metric", metric)
        trial.set_user_attr("metric_name", kind)
        trial.set_user_attr("rate", rate)
        print(f"trial {name}: {kind} {metric:.4f}, compression rate {rate:.2f}", flush=True)
        return value(metric, rate, self.floor, kind)

    def optimize(self, trials: int, timeout: float | None) -> None:
        """Runs trials until `trials` are finished or the time is up, and updates best.json after each."""
        left = trials - len(self.finished())
        if left > 0:
            callbacks = [lambda study, trial: self.report()]
            self.study.optimize(self, n_trials=left, timeout=timeout, callbacks=callbacks)

    def compress(self, run: Path, dense: int) -> float:
        """Writes a run's network as a file beside its folder, and returns the compression rate.

        Args:
          dense: the bytes of the network as float32.
        """
        from prune_jax.run import artifact
        from prune_jax.run import folder as runs

        path = run.with_name(f"{run.name}.pjx")
        artifact.write(path, runs.load(run, runs.final_kind(run)))
        return dense / path.stat().st_size

    def finished(self) -> list[dict]:
        """The finished trials: {"trial", "params", "value", "metric", "rate", "metric_name"}."""
        return [
            {"trial": t.user_attrs["run"], "params": t.params, "value": t.value}
            | {name: t.user_attrs[name] for name in ("metric", "rate")}
            | {"metric_name": t.user_attrs.get("metric_name", "")}  # that of a search of before has none
            for t in self.study.get_trials(states=(self.optuna.trial.TrialState.COMPLETE,))
        ]

    def report(self) -> dict | None:
        """Writes best.json and returns its content; None before a trial has finished."""
        trials = self.finished()
        if not trials:
            return None
        best = max(trials, key=lambda trial: trial["value"])
        kind = best["metric_name"]
        # Without the holdout: these settings are for the evaluation splits.
        flags = [*self.flags[:-1], *(f"--config.{key}={number!r}" for key, number in best["params"].items())]
        record = {
            "best": best,
            "floor_reached": not config_lib.better(kind, self.floor, best["metric"]),
            "floor": self.floor,
            "flags": flags,
            "front": front(trials, kind),
            "num_trials": len(trials),
        }
        files.write_json(self.out / "best.json", record)
        return record


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("search", __doc__)
    parser.usage = "prune-jax search OUT_DIR --config=FILE [--config.KEY=VALUE ...] [OPTION ...]"
    parser.add_argument("out", metavar="OUT_DIR", help="the folder of the search")
    parser.add_argument(
        "--trials", type=int, default=30, metavar="N", help="trials in all, those of an earlier start included"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="after so long no trial is started")
    parser.add_argument("--floor", type=float, default=0.98, metavar="METRIC", help="the metric to reach")
    parser.add_argument("--holdout", type=int, default=5000, metavar="N", help="training examples to judge on")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the proposals; runs have their own")
    parser.add_argument(
        "--range",
        nargs=3,
        action="append",
        metavar=("KEY", "LOW", "HIGH"),
        help=f"a key to search, on a logarithmic scale, in place of {', '.join(SPACE)}; repeatable",
    )
    args, flags = parser.parse_known_args(argv)
    for flag in flags:
        if not flag.startswith("--config"):
            raise UserError(f"unexpected argument {flag!r}; allowed: --config=FILE, --config.key=value, and --help's")
    if args.trials < 1 or args.holdout < 1:
        raise UserError(f"--trials is {args.trials}, --holdout is {args.holdout}; allowed: at least 1")
    _optuna()
    out = Path(args.out)
    files.check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    workdir_lib.lock(Path(os.path.realpath(out)), args.out, "OUT_DIR")
    search = _Search(args, flags)
    search.requeue()
    search.optimize(args.trials, args.timeout)
    record = search.report()
    if record is None:
        raise UserError(f"no trial of {args.out} has finished; a smaller --range of train.learning_rate may help")
    best = record["best"]
    note = "" if record["floor_reached"] else f" (below the floor of {args.floor:g})"
    print(f"best: trial {best['trial']}, metric {best['metric']:.4f}, rate {best['rate']:.2f}{note}")
    print("prune-jax train " + " ".join(record["flags"]))
