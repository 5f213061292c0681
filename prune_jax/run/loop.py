"""The loop of a run: steps, prunings at the ends of epochs, measurements, checkpoints."""

import functools
import itertools
import math
import signal
import time
from pathlib import Path

import jax
import numpy as np

from prune_jax import config as config_lib
from prune_jax import files, report
from prune_jax.config import schedules
from prune_jax.data import batching
from prune_jax.errors import Collapsed, Diverged, Stopped
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed
from prune_jax.run import checkpoint, distill, evaluate, mesh, oneshot, optim, processes, telling
from prune_jax.run import cost as cost_lib
from prune_jax.run import state as state_lib
from prune_jax.run import workdir as workdir_lib
from prune_jax.run.stopping import catch_stop_requests, closing


def _better(sparsity: float, metric: float, best: dict | None, name: str) -> bool:
    """A run is judged at the greatest sparsity it reached; among epochs at that sparsity the metric decides."""
    if best is None or sparsity != best["sparsity"]:
        return best is None or sparsity > best["sparsity"]
    return config_lib.better(name, metric, best["metric"])


_START = {
    "epoch": 0,  # epochs completed
    "batch": 0,  # steps taken in the epoch that is under way
    "loss_sum": 0.0,  # of those steps' losses
    "epoch_seconds": 0.0,  # spent on them
    "seconds": 0.0,  # spent on the completed epochs
    "best": None,
    "dense_metric": None,
    "final": None,  # the last epoch's row of metrics.csv
    "stale": 0,  # epochs at the last sparsity since the best of them
    "oneshot": None,  # the entry of the summary of a network that was pruned before its training
}


_MEASURED = (("best", "metric"), ("final", "eval_metric"))  # of progress


class Loop:
    """A run under way: what stays fixed as attributes, what moves as `state` (arrays) and `progress` (JSON)."""

    def __init__(
        self, config, dataset, network, start, workdir: Path, console, resuming, layout: mesh.Layout, teacher=None
    ):
        """Restores a run, or begins one: from fresh weights, or from `start`, a network that has been read."""
        self.config, self.dataset, self.workdir, self.console = config, dataset, workdir, console
        self.layout = layout
        self.schedule = schedules.sparsity_schedule(config)
        self.model, self.method, self.plan = network
        self.steps_per_epoch = batching.num_train_batches(dataset.train, config.train.batch_size)
        all_steps = config.train.epochs * self.steps_per_epoch
        self.num_steps = min(all_steps, config.train.max_steps or all_steps)
        self.epochs = -(-self.num_steps // self.steps_per_epoch)
        self.rate = schedules.learning_rate(config, all_steps)
        run = {"num_examples": len(dataset.train), "num_steps": self.num_steps}
        self.hyper = {name: np.float32(value) for name, value in {**self.method.hyper, **run}.items()}
        self.shapes: set[tuple[int, ...]] = set()  # of the batches for which the step has been compiled
        for line in telling.describe(config, dataset, self.schedule, self.steps_per_epoch, self.epochs):
            console.log(line)

        optimizer = optim.create(
            config.train.weight_decay, config.train.clip_norm, tuple(self.method.rates), self.method.plain
        )
        init = functools.partial(state_lib.init_state, self.model, self.method, optimizer, self.plan)
        key = jax.random.key(config.train.seed)
        shapes = jax.eval_shape(init, key)
        at = self.shardings = layout.of(shapes, self.model, shapes.params)
        abstract = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, at)
        overview = telling.parameter_overview(shapes.params, packed.shapes(shapes.gates))
        for line in (*mesh.line(layout, abstract), *overview):
            console.log(line)
        self.checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
        if resuming:
            self.state, self.progress = self.restored(abstract)
        else:
            self.state, self.progress = jax.jit(init, out_shardings=at)(key), dict(_START)
            if start is not None:
                params, gates = start.into(*self.network())
                self.state = self.state.replace(**self.placed({"params": params, "gates": gates}))
                console.log(start.line)
        self.sparsity = gates_lib.sparsity(self.state.gates)
        self.writer = self.opened_writer(resuming)
        self.compile(optimizer, shapes, teacher)
        if not resuming:
            self.record("0", self.state.params, self.state.gates)

    def restored(self, abstract: state_lib.TrainState) -> tuple[state_lib.TrainState, dict]:
        """(state, progress) of the last checkpoint."""
        state, progress = self.checkpoints.restore_last(abstract)
        progress = _START | progress  # a run of an earlier version may lack an entry
        final = progress["final"]  # of a run that goes on to more epochs, and perhaps to a greater sparsity
        if final and final["target_sparsity"] != self.schedule(self.epochs):
            progress["stale"] = 0  # else an end of its patience before would be the end of this one
        self.console.log(f"resuming after {progress['epoch']} epochs and {progress['batch']} steps")
        return state, progress

    def opened_writer(self, resuming: bool) -> report.MetricsWriter | report.NoWriter:
        """What writes the run's numbers; of several processes the first one's does."""
        if not processes.first():
            return report.NoWriter()
        options, saved = self.config.report, config_lib.leaves(config_lib.to_json(self.config))
        info = report.RunInfo(options.project, options.mlflow_uri, saved)
        writer = report.MetricsWriter(self.workdir, self.progress["epoch"] if resuming else None, options.sinks, info)
        for line in writer.lost:
            self.console.log(f"warning: {line}")
        return writer

    def compile(self, optimizer, shapes: state_lib.TrainState, teacher) -> None:
        """Jits the steps; each is compiled at its first call."""
        config, model, method, plan = self.config, self.model, self.method, self.plan
        at, whole, gather = self.shardings, self.layout.whole, self.layout.gather(model, shapes.params)
        parts, smoothing = config.train.accumulate, config.train.label_smoothing
        loss = distill.training_loss(config.distill, teacher, smoothing) if teacher else None
        step = state_lib.make_train_step(model, method, optimizer, plan, loss, parts, smoothing, gather)
        self.train_step = jax.jit(step, donate_argnums=0, out_shardings=(at, whole))
        prune_step = state_lib.make_prune_step(method, plan)
        changed = jax.eval_shape(prune_step, shapes, np.float32(0), np.bool_(True))[0]
        self.prune_step = jax.jit(prune_step, out_shardings=({name: getattr(at, name) for name in changed}, whole))
        own = at.method["state"]
        self.end_period = jax.jit(method.end_period, out_shardings=own) if method.end_period else None
        in_step = teacher is not None and distill.is_asked(config.distill, model)
        self.teacher = self.layout.put(teacher.variables, teacher.model) if in_step else None
        self.eval_step = jax.jit(state_lib.make_eval_step(model, gather), out_shardings=whole)

    def record(self, name: str, params, gates) -> None:
        """Keeps what the method wants to be drawn of a network: an epoch's, by its number, or the quantised one."""
        if self.method.record is None:
            return
        network = processes.readable((params, packed.unpack(gates), self.state.method["trainable"]))
        if processes.first():
            report.write_record(self.workdir, name, self.method.record(*network))

    def placed(self, network: dict) -> dict:
        """{"params", "gates"} as the state has them: where they lie, and the gates packed."""
        network = processes.same(network | {"gates": packed.pack(network["gates"], like=self.state.gates)})
        return processes.put(network, {name: getattr(self.shardings, name) for name in network})

    def network(self) -> tuple:
        """(params, gates) of the state, the gates as booleans; with several processes, NumPy copies."""
        return processes.readable((self.state.params, packed.unpack(self.state.gates)))

    def rates(self, step: int) -> dict[str, np.float32]:
        """The learning rates of a step, by label; a method's rates follow the same schedule as the weights' own."""
        rate = self.rate(step)
        factor = rate / self.config.train.learning_rate
        return {optim.WEIGHTS: np.float32(rate)} | {k: np.float32(v * factor) for k, v in self.method.rates.items()}

    def pruned(self, target: float, exact: bool) -> tuple[state_lib.TrainState, bool]:
        """(the state with its gates brought to the target, whether any gate moved)."""
        if target == 0:
            return self.state, False
        changes, moved = self.prune_step(self.state, np.float32(target), np.bool_(exact))
        return self.state.replace(**changes), bool(moved)

    def become(self, state: state_lib.TrainState) -> None:
        """Goes on with a pruned state."""
        self.state, self.sparsity = state, gates_lib.sparsity(state.gates)

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
            raise Diverged(
                f"the training loss is {loss} at step {step}; the last good checkpoint is kept in "
                f"{self.workdir / 'checkpoints'}. A smaller config.train.learning_rate usually helps (it is {rate:g})"
            )
        self.progress["loss_sum"] += loss
        bar.update(loss=loss, sparsity=self.sparsity)

    def steps_of(self, epoch: int) -> int:
        """The steps of an epoch, counted from 0; config.train.max_steps cuts the last one."""
        return min(self.steps_per_epoch, self.num_steps - epoch * self.steps_per_epoch)

    def over(self) -> bool:
        """Whether all epochs are done, or config.train.patience is at its end."""
        patience = self.config.train.patience
        return self.progress["epoch"] >= self.epochs or bool(patience and self.progress["stale"] >= patience)

    def tell_compiling(self, batch) -> None:
        """Says that a step of another shape is about to be compiled, which may take a minute."""
        shape = next(iter(batch.values())).shape
        if shape not in self.shapes:
            self.shapes.add(shape)
            self.console.log(f"compiling the training step for batches of {' x '.join(map(str, shape))}")

    def prune_at_once(self) -> None:
        """Prunes without training, before the first step: config.oneshot. It starts anew if it is cut short."""
        params, gates, entry, row = oneshot.begin(
            self.config, self.model, self.plan, self.network(), self.dataset, self.evaluate, self.console.log
        )
        network = self.placed({"params": params, "gates": gates})
        if processes.first():
            files.write_json(self.workdir / "oneshot.json", entry)
        self.progress["oneshot"] = {key: value for key, value in entry.items() if key != "layers"}
        if self.sparsity == 0:
            self.progress["dense_metric"] = entry["metric_before"]
        self.become(self.state.replace(**network))
        if row:
            best = {"epoch": 0, "sparsity": self.sparsity, "metric": row["eval_metric"]}
            self.progress |= {"best": best, "final": row, "seconds": row["seconds"]}
            self.writer.write(row)
            self.writer.write_layers(0, gates_lib.layer_sparsity(self.state.gates))
            self.checkpoints.save_best(0, self.state, self.progress)
        self.save()

    def train_epoch(self, requests: processes.Requests) -> None:
        """The steps of an epoch that are still to be taken."""
        config, data, progress, epoch = self.config, self.dataset, self.progress, self.progress["epoch"]
        every, extra = self.method.every, config.train.checkpoint_every
        before, target = self.schedule(epoch), self.schedule(epoch + 1)
        start = time.perf_counter() - progress["epoch_seconds"]
        batches = batching.train_batches(
            data.train, config.train.batch_size, data.buckets, config.train.seed, epoch, progress["batch"]
        )
        title, steps = f"epoch {epoch + 1}/{self.epochs}", self.steps_of(epoch)
        after = self.num_steps - epoch * self.steps_per_epoch - steps
        with self.console.bar(title, steps, progress["batch"], after) as bar:
            pending = None
            for batch in itertools.islice(batches, steps - progress["batch"]):
                step = epoch * self.steps_per_epoch + progress["batch"]
                self.tell_compiling(batch)
                batch = processes.put(batch, self.layout.rows)
                now = before + (target - before) * (progress["batch"] + 1) / self.steps_per_epoch
                hyper = {**self.hyper, "target": np.float32(now)}
                self.state, loss = self.train_step(self.state, batch, self.rates(step), hyper, self.teacher)
                step += 1
                progress["batch"] += 1
                self.settle(pending, bar)
                pending = (step, loss)
                if every and step % every == 0:
                    self.become(self.pruned(now, exact=False)[0])
                unfinished = progress["batch"] < steps  # else finish_epoch saves this step
                stop = requests.heard()
                if unfinished and (stop or (extra and step % extra == 0)):
                    self.settle(pending, bar)
                    pending = None
                    progress["epoch_seconds"] = time.perf_counter() - start
                    self.save()
                    if stop:
                        self.stop(stop)
            self.settle(pending, bar)
        progress["epoch_seconds"] = time.perf_counter() - start

    def evaluate(self, params, gates) -> dict[str, float]:
        network = self.placed({"params": params, "gates": gates})
        eval_step = functools.partial(self.eval_step, network["params"], network["gates"])
        return evaluate.dataset_columns(eval_step, self.dataset, self.config.train.eval_batch_size, self.layout.rows)

    def finish_epoch(self) -> None:
        """The method's report, pruning to the epoch's target, evaluation, the row, the checkpoints."""
        progress, start = self.progress, time.perf_counter()
        target = self.schedule(progress["epoch"] + 1)
        own = self.state.method["state"]
        if self.end_period:
            own = self.end_period(own)
        own, columns, lines = self.method.end_epoch(packed.unpack(self.state.gates), own, self.plan)
        self.state = self.state.replace(method={**self.state.method, "state": own})
        sparsity_before, before = self.sparsity, None
        pruned, moved = self.pruned(target, exact=True)
        if moved:
            before = self.evaluate(self.state.params, self.state.gates)["eval_metric"]
            self.become(pruned)
        measured = self.evaluate(self.state.params, self.state.gates)
        if before is None:
            before = measured["eval_metric"]
        row = {
            "epoch": progress["epoch"] + 1,
            "step": int(self.state.step),
            "train_loss": progress["loss_sum"] / self.steps_of(progress["epoch"]),
            **measured,
            "sparsity": self.sparsity,
            "target_sparsity": target,
            "seconds": progress["epoch_seconds"] + time.perf_counter() - start,
            "metric_before_pruning": before,
            "sparsity_before_pruning": sparsity_before,
            **columns,
        }
        metric, name = row["eval_metric"], self.dataset.task.metrics[0]
        if sparsity_before == 0:  # the epoch whose end closes the first gates was dense, too
            dense = progress["dense_metric"]
            progress["dense_metric"] = before if dense is None or config_lib.better(name, before, dense) else dense
        better = _better(self.sparsity, metric, progress["best"], name)
        if better:
            progress["best"] = {"epoch": row["epoch"], "sparsity": self.sparsity, "metric": metric}
        progress["stale"] = 0 if better or target != self.schedule(self.epochs) else progress["stale"] + 1
        progress |= {"epoch": row["epoch"], "batch": 0, "loss_sum": 0.0, "epoch_seconds": 0.0, "final": row}
        progress["seconds"] += row["seconds"]
        self.writer.write(row)
        self.writer.write_layers(row["epoch"], gates_lib.layer_sparsity(self.state.gates))
        self.record(str(row["epoch"]), self.state.params, self.state.gates)
        self.save()
        if better:
            self.checkpoints.save_best(row["step"], self.state, progress)
        for line in (telling.epoch_line(row, name, self.epochs, moved), *lines):
            self.console.log(line)

    def finish_run(self) -> dict:
        """What the method makes of the trained network, evaluated and saved; entries for the summary."""
        if self.method.end_run is None:
            return {}
        state, final = self.state, self.progress["final"]
        trained = processes.readable((state.method["trainable"], state.method["state"]))
        params, gates, entries, lines = self.method.end_run(*self.network(), *trained)
        network = self.placed({"params": params, "gates": gates})
        gates = network["gates"]
        measured = self.evaluate(network["params"], network["gates"])
        self.check_alive(gates_lib.sparsity(gates), measured["eval_metric"], lines)
        self.checkpoints.save_quantised(int(state.step), network, self.progress)
        self.record("quantised", network["params"], network["gates"])
        name, before, after = self.dataset.task.metrics[0], final["eval_metric"], measured["eval_metric"]
        for line in (*lines, f"quantised  {name} {after:.4f} (before {before:.4f})"):
            self.console.log(line)
        return {
            "sparsity": gates_lib.sparsity(gates),
            "layer_sparsity": gates_lib.layer_sparsity(gates),
            "final_metric": after,
            "metric_before_quantising": before,
            **entries,
        }

    def check_alive(self, sparsity: float, metric: float, lines: list[str]) -> None:
        """Raises Collapsed where the network that the method has made knows nothing, though the trained one did."""
        task, split = self.dataset.task, next(iter(self.dataset.evals.values()))
        level, error = evaluate.chance(task, split.labels)
        best = config_lib.best(task.metrics[0], (self.progress[a][b] for a, b in _MEASURED))
        lost = best > level + 3 * error and metric <= level + 2 * error
        if sparsity < 1 and not lost:
            return
        for line in lines:
            self.console.log(line)
        self.checkpoints.wait()
        name = task.metrics[0]
        what = "no weight is left" if sparsity == 1 else f"{name} {metric:.4f}, where a constant answer has {level:.4f}"
        raise Collapsed(
            f"the network collapsed in quantising: {what} (the trained network had {best:.4f}). A smaller "
            f"config.{self.config.pruning.method}.tau or fewer epochs usually help; no summary was written"
        )

    def cost(self) -> dict:
        """The entry `cost` of the summary of a run whose units close whole."""
        if not any(part.groups for part in self.plan.parts):
            return {}
        network = self.network()
        if not processes.first():
            return {}
        cost = cost_lib.measure(self.model, *network, self.dataset.buckets[-1])
        for line in cost_lib.lines(cost):
            self.console.log(line)
        return {"cost": cost}

    def run(self) -> dict:
        with (
            processes.leaving(),
            closing(self.checkpoints),
            closing(self.writer),
            catch_stop_requests() as signals,
        ):
            requests = processes.Requests(signals)
            if self.config.oneshot.method and self.progress["oneshot"] is None:
                self.prune_at_once()
            while not self.over():
                self.train_epoch(requests)
                self.finish_epoch()
                if (stop := requests.heard()) and not self.over():
                    self.stop(stop)
            if self.progress["epoch"] < self.epochs:
                best = self.progress["best"]["epoch"]
                self.console.log(f"stopped early: no better {self.dataset.task.metrics[0]} since epoch {best}")
            summary = _summary(self.config, self.dataset, self.state, self.progress) | self.finish_run() | self.cost()
            if self.progress["oneshot"]:
                summary["oneshot"] = self.progress["oneshot"]
            if processes.first():
                report.draw(self.workdir, summary)
            self.checkpoints.wait()
            for problem in self.writer.close():
                self.console.log(f"note      {problem}")
            if processes.first():
                files.write_json(self.workdir / "summary.json", summary)  # last: it marks the run as finished
        return summary


def _summary(config, dataset, state, progress) -> dict:
    best, final, split = progress["best"], progress["final"], next(iter(dataset.evals.values()))
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
        "eval_examples": len(split.labels),
        "chance": chance if math.isfinite(chance := evaluate.chance(dataset.task, split.labels)[0]) else None,
        "epochs": progress["epoch"],
        "steps": final["step"],
        "seconds": progress["seconds"],
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": workdir_lib.provenance()["versions"],
        "layer_sparsity": gates_lib.layer_sparsity(state.gates),
    }
