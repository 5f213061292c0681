"""What the benchmarks share: interleaved timing, the two geometries, a batch, and the line that says where."""

import importlib.metadata
import json
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax import config as config_lib
from prune_jax import data, methods, models
from prune_jax.models import Bert, BertConfig
from prune_jax.pruning.method import Method
from prune_jax.pruning.plan import Plan
from prune_jax.run import folder, optim, state

GEOMETRIES = {"tiny": (2, 256, 4, 512), "6x384": (6, 384, 12, 1536)}  # layers, d_model, heads, d_ff
VOCABULARY = 30522


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def interleaved(cases: dict[str, Callable], repeats: int, clock: str = "wall") -> dict[str, float]:
    """Median seconds of each case. The cases take turns, so that a noisy minute hits them all alike.

    Each round has another order, for what a case leaves of the caches is what the next one finds.

    Args:
      clock: of CLOCKS. "processor" is the time of all threads of this process, for a machine that others work on, too.
    """
    now = CLOCKS[clock]
    for run in cases.values():  # compile and warm up
        jax.block_until_ready(run())
    times = {name: [] for name in cases}
    order = random.Random(0)
    for _ in range(repeats):
        for name, run in order.sample(list(cases.items()), len(cases)):
            start = now()
            jax.block_until_ready(run())
            times[name].append(now() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def line(**fields) -> str:
    """A measurement as JSON: its fields, then the machine and the versions."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "numpy")}
    where = {"device": device.device_kind, "cpu": cpu, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
    return json.dumps({**fields, **where, "versions": versions})


def report(**fields) -> None:
    """Prints one JSON line: the measurement, then the machine and the versions."""
    print(line(**fields), flush=True)


def read(path: Path) -> list[dict]:
    """The measurements in a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def add(path: Path, **fields) -> None:
    """Appends a measurement to a file, and prints it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line(**fields) + "\n")
    report(**fields)


def opened(run: Path) -> tuple:
    """(the config, the dataset, the model, params, gates) of a finished run's last network."""
    saved, params, gates = folder.load(run, "last")
    saved = config_lib.completed(saved)
    saved.model.init_from = ""
    config = config_lib.resolve(saved, {})[0]
    dataset = data.load(data.DataOptions(**config.data), 1)
    model = models.create(config, dataset.task, config.model.vocab_size or dataset.vocab_size)
    return config, dataset, model, params, gates


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def make_model(geometry: str, **overrides) -> Bert:
    layers, d_model, heads, d_ff = GEOMETRIES[geometry]
    return Bert(BertConfig(VOCABULARY, layers, d_model, heads, d_ff, **overrides))


def make_batch(rows: int = 32, length: int = 64, seed: int = 0) -> dict[str, jax.Array]:
    """A full batch of random tokens: nothing is padding."""
    rng = np.random.default_rng(seed)
    return jax.device_put(
        {
            "input_ids": rng.integers(0, VOCABULARY, (rows, length)).astype(np.int32),
            "token_type_ids": np.zeros((rows, length), np.int32),
            "attention_mask": np.ones((rows, length), np.int32),
            "labels": rng.integers(0, 2, rows).astype(np.int32),
            "weights": np.ones(rows, np.float32),
        }
    )


def make_plan(model, structure: str = "unstructured", scope: str = "local") -> Plan:
    """The plan for a new network of the model."""
    gates = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["gates"]
    return state.make_plan(model, gates, structure, scope)


def rates(weights: float, method: Method) -> dict[str, jax.Array]:
    """The learning rates of a training step: that of the weights, and the method's own."""
    return {label: jnp.float32(rate) for label, rate in {optim.WEIGHTS: weights, **method.rates}.items()}


class Training:
    """A jitted training step with its state; each call takes one step and returns the loss."""

    def __init__(self, model, config, batch):
        method = methods.from_config(config)
        optimizer = optim.create(0.01, 1.0, tuple(method.rates), method.plain)
        plan = make_plan(model, config.pruning.structure, config.pruning.scope)
        init = jax.jit(lambda key: state.init_state(model, method, optimizer, plan, key))
        self.state = init(jax.random.key(0))
        self.batch = batch
        self.rates = rates(2e-5, method)
        self.hyper = {name: jnp.float32(value) for name, value in method.hyper.items()}
        self.step = jax.jit(state.make_train_step(model, method, optimizer, plan), donate_argnums=0)

    def __call__(self):
        self.state, loss = self.step(self.state, self.batch, self.rates, self.hyper)
        return loss
