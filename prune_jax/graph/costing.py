"""What a network costs by how many units of each group are left: weights, flops, or seconds on this machine.

Seconds are a table, as ZipLM has it (Kurtic, Frantar and Alistarh, 2023, arXiv:2302.04089): the whole network is timed
at its example inputs with all groups of one shape cut to several widths, and what that saves is shared among them. What
groups save is added up, less what two of them would both save, which is told by the operations of the kernels in which
they meet. A table is kept beside the caches of the program, by a hash of the function and the device.

A machine's speed drifts, and other programs take turns on it. So the dense and the cut network take turns, too, and the
median of their ratios is what counts.
"""

import functools
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.graph import readings
from prune_jax.graph.traced import Traced
from prune_jax.pruning import costs as costs_lib
from prune_jax.pruning import trees
from prune_jax.pruning.costs import Costs, Table

WIDTHS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)  # open fractions at which a network is timed; 0 is a single unit
_WIDE = 64  # units, of which one more or less is nothing
_ROUNDS = 11
_FEWEST_ROUNDS = 5
_MOST_SECONDS = 5.0  # of a width with the fewest rounds: calls that take a second each vary little
_CERTAIN = 1 / 200  # of a dense call: what groups save is a few hundredths of it


def costs(graph: Traced, word: str) -> Costs:
    """The costs of a graph; word: weights, flops or seconds. ValueError for another."""
    if word == "weights":
        shapes = {name: leaf.shape for name, leaf in trees.by_name(graph.shapes).items()}
        able = [group for group in graph.groups.values() if group.prunable]
        used = costs_lib.of_weights(able, shapes)
        members = {member.name for group in able for member in group.members}
        rest = sum(float(np.prod(shape)) for name, shape in shapes.items() if name not in members)
        return used._replace(fixed=used.fixed + rest)
    if word == "flops":
        return _flops(graph)
    if word == "seconds":
        return _seconds(graph)
    raise ValueError(f"the cost is {word!r}; allowed: weights, flops, seconds")


def _flops(graph: Traced) -> Costs:
    atoms = graph.analysis.atoms
    terms: list[costs_lib.Term] = []
    of_atom = {atom: name for name, atom in graph.atoms.items() if graph.groups[name].prunable}
    for step in graph.analysis.steps:
        eqn = step.eqn
        dense = readings.flops(eqn) * step.times
        reading = readings.readings(eqn, step.number)
        if not dense or reading is None:
            continue
        side = 0 if eqn.primitive.name == "dot_general" else 1
        read = [step.frame.axes[eqn.invars[side]][pair[side]] for pair in reading.pairs]  # type: ignore[index]
        axes = [
            {of_atom[atom]: atoms.units(axis, atom) >= 0 for atom in atoms.leaves(axis) if atom in of_atom}
            for axis in [*step.frame.axes[eqn.outvars[0]], *read]
        ]
        terms += costs_lib.spread(float(dense), axes)
    return Costs("flops", tuple(terms))


def _seconds(graph: Traced) -> Costs:
    groups = [group for group in graph.groups.values() if group.prunable]
    flops = _flops(graph)
    alike: dict[Any, list[str]] = {}
    saved = flops.per_unit({group.name: group.size for group in groups}) if groups else {}
    for group in groups:
        alike.setdefault((group.kind, group.size, round(saved[group.name])), []).append(group.name)
    path = _path(graph)
    times = _read(path, len(alike))
    if times is None:
        times = _measure(graph, list(alike.values()))
        _write(path, times)
    dense = times["dense"]
    tables = []
    for names, row in zip(alike.values(), times["rows"], strict=True):
        each = (np.array([dense, *_falling(row, dense)]) - dense) / len(names)
        tables += [Table(name, WIDTHS[::-1], tuple(float(x) for x in each[::-1])) for name in names]
    return Costs("seconds", (), tuple(tables), float(dense), flops)


def _falling(row: Sequence[float], dense: float) -> list[float]:
    """The never rising numbers, at most `dense`, that are nearest to those of a row.

    More of a network takes no less time: what says otherwise is noise, and is averaged (pool adjacent violators, Ayer
    et al., 1955). The least so far in its place would take every outlier for a saving.
    """
    pooled: list[tuple[float, int]] = []
    for value in row:
        mean, count = value, 1
        while pooled and pooled[-1][0] < mean:
            above, number = pooled.pop()
            mean, count = (above * number + mean * count) / (number + count), number + count
        pooled.append((mean, count))
    return [min(mean, dense) for mean, count in pooled for _ in range(count)]


def _measure(graph: Traced, alike: list[list[str]]) -> dict[str, Any]:
    """{"dense": seconds, "rows": per class of groups the seconds at each width below 1}."""
    dense = medians([call(graph, {})])[0]
    rows = []
    for names in alike:
        row = []
        for width in WIDTHS[1:]:
            cut = {}
            for name in names:
                size = graph.groups[name].size
                left = max(1, round(width * size))
                if left >= _WIDE:
                    left -= 1 - left % 2  # what pruning leaves is seldom a multiple of 8, which would be faster
                cut[name] = np.arange(size) >= left
            row.append(dense * relative_seconds(graph, cut))
        rows.append(row)
    return {"dense": dense, "rows": rows}


def medians(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """The median seconds of each call; the calls take turns."""
    return [statistics.median(times) for times in turns(calls)]


def relative_seconds(graph: Traced, cut: Mapping[str, np.ndarray]) -> float:
    """The time of one compiled call at the example inputs with these units cut, in parts of a dense one's."""
    return ratio([call(graph, {}), call(graph, cut)])


def call(graph: Traced, cut: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    """A compiled call at the example inputs with these units cut; the time does not depend on the values of weights."""
    if not cut and graph.compiled is not None:
        return graph.compiled
    evaluation, _ = graph.evaluation(graph.example_inputs, cut)
    axes = zip(jax.tree.leaves(graph.shapes), graph.param_axes, strict=True)
    sizes = (
        ([evaluation.length(axis, n) for axis, n in zip(own, leaf.shape, strict=True)], leaf.dtype)
        for leaf, own in axes
    )
    leaves = [jnp.full(shape, 0.01, dtype) for shape, dtype in sizes]
    inputs = [jnp.ones(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(graph.example_inputs)]
    run = functools.partial(jax.jit(evaluation), *leaves, *inputs)
    jax.block_until_ready(run())
    if not cut:
        graph.compiled = run  # the dense network is measured beside each of the others
    return run


def turns(calls: Sequence[Callable[[], Any]], rounds: int = _ROUNDS) -> list[list[float]]:
    """The seconds of each call, round by round: the calls take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for run, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run())
            own.append(time.perf_counter() - start)
    return times


def ratio(calls: Sequence[Callable[[], Any]]) -> float:
    """The median over rounds of the second call's time in parts of the first's.

    Rounds go on until the range of the middle half of them, over the root of their number, is small, but not for longer
    than a few seconds.
    """
    found: list[float] = []
    end = time.perf_counter() + _MOST_SECONDS
    while True:
        first, second = turns(calls, _FEWEST_ROUNDS)
        found += [b / a for a, b in zip(first, second, strict=True)]
        low, middle, high = statistics.quantiles(found, n=4)
        if (high - low) / len(found) ** 0.5 <= _CERTAIN * max(middle, 1) or time.perf_counter() > end:
            return statistics.median(found)


def _path(graph: Traced) -> Path:
    device = jax.devices()[0]
    digest = hashlib.sha256(f"{device.platform} {device.device_kind} {os.cpu_count()} {jax.__version__}".encode())
    digest.update(str(graph.analysis.top.jaxpr).encode())
    folder = Path(os.environ.get("PRUNE_JAX_CACHE") or Path.home() / ".cache" / "prune_jax")
    return folder / "latency" / f"{digest.hexdigest()}.json"


def _read(path: Path, classes: int) -> dict[str, Any] | None:
    """A table that was kept, None where there is none or it is not one."""
    try:
        kept = json.loads(path.read_text())
        rows = kept["rows"]
        fits = len(rows) == classes and all(len(row) == len(WIDTHS) - 1 for row in rows)
        numbers = all(isinstance(x, float) and 0 < x < 1e6 for x in [kept["dense"], *(x for row in rows for x in row)])
        return kept if fits and numbers else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, times: dict[str, Any]) -> None:
    """Keeps a table; one that cannot be kept is measured again next time."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(times))
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
