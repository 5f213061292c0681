"""Searches the hyperparameters of soft weight-sharing for the smallest file at an accuracy, on held-out training data.

    python -m prune_jax.search OUT --config=FILE [--config.key=value ...] --holdout=5000 --floor=0.98 [--trials=30]
        [--timeout=SECONDS] [--seed=0] [--range KEY LOW HIGH ...]

A trial is a run of its own, OUT/trials/<n>, whose network is written as OUT/trials/<n>.pjx. All start from one
pretraining, the first trial's. The evaluation splits are never read: `--holdout` training examples stand in for them.
The study is in OUT/study.journal, and the same command goes on with it; OUT/best.json holds the best trial so far.
Optuna (an optional dependency) proposes the values, by its tree-structured Parzen estimator.
"""

import argparse
import contextlib
import fcntl
import math
import subprocess
import sys
from pathlib import Path

from prune_jax import command
from prune_jax import workdir as workdir_lib
from prune_jax.errors import UserError

LAUNCH = Path(__file__).resolve().parents[1] / "launch.py"
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


def value(metric: float, rate: float, floor: float) -> float:
    """What a trial is worth: its compression rate, or, below the floor, how far below (negative).

    So every trial that reaches the floor is above every one that does not, and those are led towards it.
    """
    return rate if metric >= floor else metric - floor


def front(trials: list[dict]) -> list[dict]:
    """The trials that no other beats in both metric and rate, by falling metric."""
    found = []
    for trial in sorted(trials, key=lambda trial: (-trial["metric"], -trial["rate"])):
        if not found or trial["rate"] > found[-1]["rate"]:
            found.append(trial)
    return found


def _optuna():
    try:
        import optuna
    except ImportError as error:
        raise UserError("the search needs optuna, which is not installed: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _ranges(given: list[list[str]] | None) -> dict[str, tuple[float, float]]:
    """The space of --range, or SPACE where there is none."""
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


def _launch(flags: list[str], workdir: Path) -> dict | None:
    """The summary of a run of launch.py in a process of its own; None if its loss became NaN.

    Raises:
      UserError: with its message, if the run did not start, or was stopped.
    """
    done = subprocess.run(
        [sys.executable, str(LAUNCH), *flags, f"--workdir={workdir}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if done.returncode == 1:
        return None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(lines[-1].removeprefix("launch.py: ") if lines else f"{workdir} ended with {done.returncode}")
    return workdir_lib.read_json(workdir / "summary.json")


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
        setting = {"flags": self.flags, "floor": self.floor}  # what makes the trials' values comparable
        if self.finished() and self.study.user_attrs != setting:
            raise UserError(
                f"{self.out} holds the trials of another search, {self.study.user_attrs}; choose another folder"
            )
        for name, content in setting.items():
            self.study.set_user_attr(name, content)
        self.study.sampler = optuna.samplers.TPESampler(seed=args.seed + len(self.study.trials))

    def requeue(self) -> None:
        """Puts trials that an earlier process left unfinished at the head of the queue, in their own folders.

        A killed process leaves its trial running; after Ctrl-C Optuna calls it failed.
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
            self.study.enqueue_trial(params, user_attrs={"run": run})

    def __call__(self, trial) -> float:
        chosen = {key: trial.suggest_float(key, *bounds, log=True) for key, bounds in self.space.items()}
        name = trial.user_attrs.get("run", str(trial.number))
        trial.set_user_attr("run", name)
        flags = [*self.flags, *(f"--config.{key}={number!r}" for key, number in chosen.items())]
        pretrained = [path.parent for path in sorted(self.trials.glob(f"*/{workdir_lib.PRETRAIN}/summary.json"))]
        if pretrained and pretrained[0].parent.name != name:
            flags += [f"--config.model.init_from={pretrained[0]}", "--config.model.init_checkpoint=last"]
        summary = _launch(flags, self.trials / name)
        if summary is None:
            print(f"trial {name}: the loss became NaN", flush=True)
            raise self.optuna.TrialPruned
        rate = self.compress(self.trials / name, 4 * summary["num_params"])
        metric = summary["final_metric"]
        trial.set_user_attr("metric", metric)
        trial.set_user_attr("rate", rate)
        print(f"trial {name}: {summary['metric_name']} {metric:.4f}, compression rate {rate:.2f}", flush=True)
        return value(metric, rate, self.floor)

    def optimize(self, trials: int, timeout: float | None) -> None:
        """Runs trials until there are so many finished ones, or until the time is up; best.json follows each."""
        left = trials - len(self.finished())
        if left > 0:
            callbacks = [lambda study, trial: self.report()]
            self.study.optimize(self, n_trials=left, timeout=timeout, callbacks=callbacks)

    def compress(self, run: Path, dense: int) -> float:
        """The compression rate of the run's network as a file beside its folder; dense: its bytes as float32."""
        from prune_jax import runs
        from prune_jax.compress import artifact

        path = run.with_name(f"{run.name}.pjx")
        artifact.write(path, *runs.load(run, runs.final_kind(run)))
        return dense / path.stat().st_size

    def finished(self) -> list[dict]:
        """The finished trials: {"trial", "params", "value", "metric", "rate"}."""
        return [
            {"trial": t.user_attrs["run"], "params": t.params, "value": t.value}
            | {name: t.user_attrs[name] for name in ("metric", "rate")}
            for t in self.study.get_trials(states=(self.optuna.trial.TrialState.COMPLETE,))
        ]

    def report(self) -> dict | None:
        """Writes best.json; returns what is in it, None before a trial has finished."""
        trials = self.finished()
        if not trials:
            return None
        best = max(trials, key=lambda trial: trial["value"])
        # Without the holdout: these settings are for the evaluation splits.
        flags = [*self.flags[:-1], *(f"--config.{key}={number!r}" for key, number in best["params"].items())]
        found = {
            "best": best,
            "floor_reached": best["metric"] >= self.floor,
            "floor": self.floor,
            "flags": flags,
            "front": front(trials),
            "num_trials": len(trials),
        }
        workdir_lib.write_json(self.out / "best.json", found)
        return found


@contextlib.contextmanager
def _locked(out: Path):
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out} is in use by another search") from None
        yield


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m prune_jax.search", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("out", help="the folder of the search")
    parser.add_argument("--trials", type=int, default=30, help="trials in all, those of an earlier start included")
    parser.add_argument("--timeout", type=float, help="seconds after which no trial is started")
    parser.add_argument("--floor", type=float, default=0.98, help="the least metric that counts as reached")
    parser.add_argument("--holdout", type=int, default=5000, help="training examples to judge on")
    parser.add_argument("--seed", type=int, default=0, help="of what is proposed; runs follow config.train.seed")
    parser.add_argument(
        "--range",
        nargs=3,
        action="append",
        metavar=("KEY", "LOW", "HIGH"),
        help=f"search these keys instead of {', '.join(SPACE)}",
    )
    args, flags = parser.parse_known_args(argv)
    for flag in flags:
        if not flag.startswith("--config"):
            raise UserError(f"unexpected argument {flag!r}; allowed: --config=FILE, --config.key=value, and --help's")
    if args.trials < 1 or args.holdout < 1:
        raise UserError(f"--trials is {args.trials}, --holdout is {args.holdout}; allowed: at least 1")
    _optuna()
    with _locked(Path(args.out)):
        search = _Search(args, flags)
        search.requeue()
        search.optimize(args.trials, args.timeout)
        found = search.report()
    if found is None:
        raise UserError(f"no trial of {args.out} has finished; a smaller --range of train.learning_rate may help")
    best = found["best"]
    note = "" if found["floor_reached"] else f" (below the floor of {args.floor:g})"
    print(f"best: trial {best['trial']}, metric {best['metric']:.4f}, rate {best['rate']:.2f}{note}")
    print("python launch.py " + " ".join(found["flags"]))


if __name__ == "__main__":
    sys.exit(command.run("search", main))
