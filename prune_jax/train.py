"""One run: data in, a pruned network and its measurements out.

Everything the run does is a function of its config: the data order, dropout, sampling and ties all follow from
`train.seed` and the step, so a run that is stopped and resumed ends with the numbers of an undisturbed one.
"""

import contextlib
import functools
import math
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prune_jax import checkpoint, data, distill, evaluate, initial, methods, models, optim, report, schedules
from prune_jax import config as config_lib
from prune_jax import gates as gates_lib
from prune_jax import state as state_lib
from prune_jax import workdir as workdir_lib
from prune_jax.data import batching
from prune_jax.errors import Stopped, UserError


def parameter_overview(params, gates) -> list[str]:
    """Lines of a table: parameters and gates of each module of the network, and their sums."""

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    rows = [(name, size(params[name]), size(gates.get(name, {}))) for name in params]
    rows.append(("total", size(params), size(gates)))
    width = max(len(name) for name, *_ in rows)
    return [f"{'module':<{width}}  {'parameters':>12}  {'prunable':>12}"] + [
        f"{name:<{width}}  {count:>12,}  {gated:>12,}" for name, count, gated in rows
    ]


@contextlib.contextmanager
def _stop_requests():
    """Yields a list that receives the first SIGINT or SIGTERM; a second signal acts as it would without us."""
    received: list[int] = []
    previous = {}

    def restore():
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number, frame):
        received.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


def _shardings(train_batch_size: int) -> tuple[NamedSharding, NamedSharding]:
    """(replicated, split by rows) over all devices."""
    devices = jax.devices()
    if train_batch_size % len(devices):
        raise UserError(
            f"config.train.batch_size is {train_batch_size}; on {len(devices)} devices it must be a multiple of "
            f"{len(devices)}"
        )
    mesh = Mesh(np.array(devices), ("data",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def _better(sparsity: float, metric: float, best: dict | None) -> bool:
    """A run is judged at the greatest sparsity it reached; among epochs at that sparsity the metric decides."""
    return best is None or (sparsity, metric) > (best["sparsity"], best["metric"])


def _describe(config, dataset, schedule, steps_per_epoch) -> list[str]:
    p, t = config.pruning, config.train
    devices = jax.devices()
    lines = [
        f"data      {dataset.description}",
        f"training  {t.epochs} epochs of {steps_per_epoch} steps, batch {t.batch_size}, learning rate "
        f"{t.learning_rate:g} ({t.lr_schedule}), {config.model.dtype}, seed {t.seed}, on {len(devices)} x "
        f"{devices[0].device_kind}",
    ]
    if p.method not in methods.UNSCHEDULED:
        targets = " ".join(f"{100 * schedule(epoch):g}" for epoch in range(1, t.epochs + 1))
        lines.append(f"pruning   {p.method}, scope {p.scope}; percent closed after each epoch: {targets}")
    return lines


_START = {
    "epoch": 0,  # epochs completed
    "batch": 0,  # steps taken in the epoch that is under way
    "loss_sum": 0.0,  # of those steps' losses
    "epoch_seconds": 0.0,  # spent on them
    "seconds": 0.0,  # spent on the completed epochs
    "best": None,
    "dense_metric": None,
    "final": None,  # the last epoch's row of metrics.csv
}


class _Loop:
    """A run under way: what stays fixed as attributes, what moves as `state` (arrays) and `progress` (JSON)."""

    def __init__(self, config, dataset, workdir: Path, console, resuming: bool, shardings, teacher=None):
        self.config, self.dataset, self.workdir, self.console = config, dataset, workdir, console
        self.replicated, self.rows = replicated, _ = shardings
        self.schedule = schedules.sparsity_schedule(config)
        self.method = method = methods.create(config)
        self.steps_per_epoch = batching.num_train_batches(dataset.train, config.train.batch_size)
        num_steps = config.train.epochs * self.steps_per_epoch

        model = models.create(config, dataset.task, config.model.vocab_size or dataset.vocab_size)
        optimizer = optim.create(config.train.weight_decay, config.train.clip_norm, tuple(method.rates), method.plain)
        init = functools.partial(state_lib.init_state, model, method, optimizer)
        key = jax.random.key(config.train.seed)
        shapes = jax.eval_shape(init, key)
        for line in _describe(config, dataset, self.schedule, self.steps_per_epoch):
            console.log(line)
        for line in parameter_overview(shapes.params, shapes.gates):
            console.log(line)

        self.checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
        if resuming:
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), shapes)
            self.state, self.progress = self.checkpoints.restore_last(abstract)
            console.log(f"resuming after {self.progress['epoch']} epochs and {self.progress['batch']} steps")
        else:
            self.state, self.progress = jax.jit(init, out_shardings=replicated)(key), dict(_START)
            if config.model.init_from:
                source, kind = config.model.init_from, config.model.init_checkpoint
                labels = getattr(dataset.task, "labels", ())
                network, note = initial.network(source, kind, self.state.params, self.state.gates, labels)
                params, gates = jax.device_put(network, replicated)
                self.state = self.state.replace(params=params, gates=gates)
                console.log(note)
        resume_epoch = self.progress["epoch"] if resuming else None
        self.writer = report.MetricsWriter(workdir, resume_epoch, config, config.report.sinks)

        loss = distill.training_loss(config.distill, teacher) if teacher else None
        self.train_step = jax.jit(state_lib.make_train_step(model, self.method, optimizer, loss), donate_argnums=0)
        in_step = teacher is not None and distill.in_step(config.distill)
        self.teacher = jax.device_put(teacher.variables, replicated) if in_step else None
        self.eval_step = jax.jit(state_lib.make_eval_step(model))
        run = {"num_examples": len(dataset.train), "num_steps": num_steps}
        self.hyper = {name: np.float32(value) for name, value in {**run, **self.method.hyper}.items()}
        self.rate = schedules.learning_rate(config, num_steps)
        self.sparsity = gates_lib.sparsity(self.state.gates)
        if not resuming:
            self.record("0", self.state.params, self.state.gates)

    def record(self, name: str, params, gates) -> None:
        """Keeps what the method wants to be drawn of a network: an epoch's, by its number, or the quantised one."""
        if self.method.record is not None:
            report.write_record(self.workdir, name, self.method.record(params, gates, self.state.method["trainable"]))

    def rates(self, step: int) -> dict[str, np.float32]:
        """The learning rates of a step, by label; a method's rates follow the same schedule as the weights' own."""
        rate = self.rate(step)
        factor = rate / self.config.train.learning_rate
        return {optim.WEIGHTS: np.float32(rate)} | {k: np.float32(v * factor) for k, v in self.method.rates.items()}

    def prune(self, target: float, end_of_epoch: bool) -> None:
        if target == 0:
            return
        state, method = self.state, self.state.method
        key = jax.random.fold_in(jax.random.fold_in(state.key, 2), state.step)
        gates = self.method.prune(
            key, state.params, state.gates, method["trainable"], method["state"], target, end_of_epoch
        )
        self.state = state.replace(gates=gates)
        self.sparsity = gates_lib.sparsity(gates)

    def save(self) -> None:
        self.checkpoints.save_last(int(self.state.step), self.state, self.progress)

    def stop(self, signal_number: int) -> None:
        self.checkpoints.wait()
        raise Stopped(
            f"stopped by {signal.Signals(signal_number).name} after step {int(self.state.step)}; the state is saved in "
            f"{self.workdir / 'checkpoints'}, and the same command resumes the run",
            exit_code=128 + signal_number,
        )

    def settle(self, pending, bar) -> None:
        """Reads a step's loss once the next step is under way, so that the device never waits for the host."""
        if pending is None:
            return
        step, loss = pending[0], float(pending[1])
        if not math.isfinite(loss):
            rate = self.config.train.learning_rate
            raise Stopped(
                f"the training loss is {loss} at step {step}; the last good checkpoint is kept in "
                f"{self.workdir / 'checkpoints'}. A smaller config.train.learning_rate usually helps (it is {rate:g})",
                exit_code=1,
            )
        self.progress["loss_sum"] += loss
        bar.update(loss=loss, sparsity=self.sparsity)

    def train_epoch(self, stop_requests: list[int]) -> None:
        """The steps of an epoch that are still to be taken."""
        config, data, progress, epoch = self.config, self.dataset, self.progress, self.progress["epoch"]
        every, extra = self.method.prune_every, config.train.checkpoint_every
        before, target = self.schedule(epoch), self.schedule(epoch + 1)
        start = time.perf_counter() - progress["epoch_seconds"]
        batches = batching.train_batches(
            data.train, config.train.batch_size, data.buckets, config.train.seed, epoch, progress["batch"]
        )
        title = f"epoch {epoch + 1}/{config.train.epochs}"
        with self.console.bar(title, self.steps_per_epoch, progress["batch"]) as bar:
            pending = None
            for batch in batches:
                step = epoch * self.steps_per_epoch + progress["batch"]
                batch = jax.device_put(batch, self.rows)
                self.state, loss = self.train_step(self.state, batch, self.rates(step), self.hyper, self.teacher)
                step += 1
                progress["batch"] += 1
                self.settle(pending, bar)
                pending = (step, loss)
                if every and step % every == 0:
                    self.prune(before + (target - before) * progress["batch"] / self.steps_per_epoch, False)
                unfinished = progress["batch"] < self.steps_per_epoch  # else finish_epoch saves this step
                if unfinished and (stop_requests or (extra and step % extra == 0)):
                    self.settle(pending, bar)
                    pending = None
                    progress["epoch_seconds"] = time.perf_counter() - start
                    self.save()
                    if stop_requests:
                        self.stop(stop_requests[0])
            self.settle(pending, bar)
        progress["epoch_seconds"] = time.perf_counter() - start

    def evaluate(self, params, gates) -> dict[str, float]:
        eval_step = functools.partial(self.eval_step, params, gates)
        return evaluate.dataset_columns(eval_step, self.dataset, self.config.train.eval_batch_size, self.rows)

    def finish_epoch(self) -> None:
        """The method's report, pruning to the epoch's target, evaluation, the row, the checkpoints."""
        config, progress, start = self.config, self.progress, time.perf_counter()
        target = self.schedule(progress["epoch"] + 1)
        own, columns, lines = self.method.end_epoch(self.state.gates, self.state.method["state"])
        self.state = self.state.replace(method={**self.state.method, "state": own})
        sparsity_before, before = self.sparsity, None
        if target > self.sparsity or (self.method.regrows and target):
            before = self.evaluate(self.state.params, self.state.gates)["eval_metric"]
        self.prune(target, end_of_epoch=True)
        found = self.evaluate(self.state.params, self.state.gates)
        if before is None:
            before = found["eval_metric"]
        row = {
            "epoch": progress["epoch"] + 1,
            "step": int(self.state.step),
            "train_loss": progress["loss_sum"] / self.steps_per_epoch,
            **found,
            "sparsity": self.sparsity,
            "target_sparsity": target,
            "seconds": progress["epoch_seconds"] + time.perf_counter() - start,
            "metric_before_pruning": before,
            "sparsity_before_pruning": sparsity_before,
            **columns,
        }
        metric = row["eval_metric"]
        if self.sparsity == 0:
            progress["dense_metric"] = max(metric, progress["dense_metric"] or -math.inf)
        better = _better(self.sparsity, metric, progress["best"])
        if better:
            progress["best"] = {"epoch": row["epoch"], "sparsity": self.sparsity, "metric": metric}
        progress |= {"epoch": row["epoch"], "batch": 0, "loss_sum": 0.0, "epoch_seconds": 0.0, "final": row}
        progress["seconds"] += row["seconds"]
        self.writer.write(row)
        self.writer.write_layers(row["epoch"], gates_lib.layer_sparsity(self.state.gates))
        self.record(str(row["epoch"]), self.state.params, self.state.gates)
        self.save()
        if better:
            self.checkpoints.save_best(row["step"], self.state, progress)
        for line in (_epoch_line(row, self.dataset.task.metrics[0], config.train.epochs), *lines):
            self.console.log(line)

    def finish_run(self) -> dict:
        """What the method makes of the trained network, evaluated and saved; entries for the summary."""
        if self.method.end_run is None:
            return {}
        state, final = self.state, self.progress["final"]
        params, gates, entries, lines = self.method.end_run(
            state.params, state.gates, state.method["trainable"], state.method["state"]
        )
        network = jax.device_put({"params": params, "gates": gates}, self.replicated)
        found = self.evaluate(network["params"], network["gates"])
        self.checkpoints.save_quantised(int(state.step), network, self.progress)
        self.record("quantised", network["params"], network["gates"])
        name, before, after = self.dataset.task.metrics[0], final["eval_metric"], found["eval_metric"]
        for line in (*lines, f"quantised  {name} {after:.4f} (before {before:.4f})"):
            self.console.log(line)
        return {
            "sparsity": gates_lib.sparsity(gates),
            "layer_sparsity": gates_lib.layer_sparsity(gates),
            "final_metric": after,
            "metric_before_quantising": before,
            **entries,
        }

    def run(self) -> dict:
        with (
            contextlib.closing(self.checkpoints),
            contextlib.closing(self.writer),
            _stop_requests() as stop_requests,
        ):
            while self.progress["epoch"] < self.config.train.epochs:
                self.train_epoch(stop_requests)
                self.finish_epoch()
                if stop_requests and self.progress["epoch"] < self.config.train.epochs:
                    self.stop(stop_requests[0])
            summary = _summary(self.config, self.dataset, self.state, self.progress) | self.finish_run()
            report.draw(self.workdir, summary)
            self.checkpoints.wait()
            for problem in self.writer.close():
                self.console.log(f"note      {problem}")
            workdir_lib.write_json(self.workdir / "summary.json", summary)  # last: it marks the run as finished
        return summary


def train_and_evaluate(config, workdir) -> dict:
    """Runs, or resumes, the experiment of `config` in `workdir`.

    Args:
      config: a ConfigDict in the form of configs/common.py; resolved here.
      workdir: a folder. An unfinished run of the same config in it is resumed, any other run is zipped first.
    Returns:
      The summary that workdir/summary.json holds.
    Raises:
      UserError: a mistake in the config or the data, before anything is written.
      Stopped: the loss became NaN, or a signal asked for a stop; the checkpoints are in order.
    """
    config, notes = config_lib.resolve(config)
    console = report.Console()
    shardings = _shardings(config.train.batch_size)
    dataset = data.load(config)
    rows, vocab_size = config.model.vocab_size, dataset.vocab_size
    if dataset.tokenizer and rows not in (None, vocab_size) and not (config.model.init_from and rows > vocab_size):
        allowed = "at most as many" if config.model.init_from else "as many (leave the key unset to follow it)"
        raise UserError(
            f"config.model.vocab_size is {rows}, but the tokenizer has {vocab_size} tokens "
            f"({dataset.tokenizer.origin}); allowed: {allowed}"
        )
    teacher = distill.load(config, dataset)
    workdir = Path(workdir)
    config_json = config_lib.to_json(config)
    resuming = workdir_lib.prepare(workdir, config_json, console.log)
    console.attach(workdir)
    for note in notes:
        console.log(f"note      {note}")
    if config.pretrain.epochs and not config.model.init_from:
        config = _pretrained(config, workdir / workdir_lib.PRETRAIN, console)
    if not resuming:
        if dataset.tokenizer:
            dataset.tokenizer.save(workdir / "tokenizer")
        workdir_lib.write_json(workdir / "provenance.json", workdir_lib.provenance(str(jax.devices()[0])))
    if not distill.changes_loss(config.distill):
        teacher = None
    if teacher:
        dataset, line = distill.teach(teacher, config, dataset, shardings[1])
        console.log(line)
    summary = _Loop(config, dataset, workdir, console, resuming, shardings, teacher).run()
    for line in _closing_lines(summary, workdir):
        console.log(line)
    return summary


def _pretrained(config, workdir: Path, console):
    """Runs, resumes or finds the dense run that config.pretrain asks for; the config that starts from its network."""
    if not (workdir / "summary.json").exists():
        console.log(f"pretraining in {workdir}")
        try:
            train_and_evaluate(config_lib.pretraining(config), workdir)
        finally:
            workdir_lib.release(workdir)
    config = config.copy_and_resolve_references()
    config.model.init_from = str(workdir)
    return config


def _epoch_line(row: dict, metric_name: str, epochs: int) -> str:
    others = [f"{k.removeprefix('eval_')} {v:.4f}" for k, v in row.items() if k.startswith("eval_") and k not in
              ("eval_loss", "eval_metric")]  # fmt: skip
    return "  ".join(
        [
            f"epoch {row['epoch']}/{epochs}",
            f"train loss {row['train_loss']:.4f}",
            f"eval loss {row['eval_loss']:.4f}",
            f"{metric_name} {row['eval_metric']:.4f}",
            *others,
            f"sparsity {100 * row['sparsity']:.2f}% (target {100 * row['target_sparsity']:g}%)",
            f"{row['seconds']:.1f} s",
        ]
    )


def _summary(config, dataset, state, progress) -> dict:
    best, final = progress["best"], progress["final"]
    device = jax.devices()[0]
    return {
        "method": config.pruning.method,
        "task": dataset.task.name,
        "model_size": config_lib.model_label(config),
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "num_prunable": gates_lib.count(state.gates),
        "sparsity": final["sparsity"],
        "metric_name": dataset.task.metrics[0],
        "best_metric": best["metric"],
        "best_epoch": best["epoch"],
        "best_sparsity": best["sparsity"],
        "dense_metric": progress["dense_metric"],
        "final_metric": final["eval_metric"],
        "epochs": progress["epoch"],
        "steps": final["step"],
        "seconds": progress["seconds"],
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": workdir_lib.provenance()["versions"],
        "layer_sparsity": gates_lib.layer_sparsity(state.gates),
    }


def _closing_lines(summary: dict, workdir: Path) -> list[str]:
    name, best, dense = summary["metric_name"], summary["best_metric"], summary["dense_metric"]
    line = f"best {name} {best:.4f} at {100 * summary['best_sparsity']:.2f}% sparsity (epoch {summary['best_epoch']})"
    if summary["best_sparsity"] > 0:
        line += (
            f"; dense start {dense:.4f} ({best - dense:+.4f})" if dense is not None else "; no dense epoch before it"
        )
    return [line, f"results in {workdir} ({summary['seconds']:.0f} s)"]
