"""Random networks of the primitives that networks are made of, to look for cuts that change what they compute.

    python -m benchmarks.random_networks --count 1000 --seed 0

prints every network whose cut version differs from its gated one.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import prune_jax as pj
from prune_jax.pruning import trees

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile, not to run
WIDTHS = (1, 2, 3, 4, 6, 8)
Choose = Callable[[int], int]  # n -> one of 0 .. n - 1


class Builder:
    """Draws a network operation by operation: a list of steps on a list of tensors, and its weights.

    Args:
      choose: what draws; that of a hypothesis strategy can be made simpler where a test fails.
    """

    def __init__(self, choose: Choose, steps: int) -> None:
        self._choose, self._rng = choose, np.random.default_rng(choose(1000))
        self.params: dict[str, Any] = {}
        self.steps: list[Callable[[dict, list], Any]] = []
        self.names: list[str] = []
        self.width = self.pick(WIDTHS[1:])
        # The first axis counts examples, 2 of them here.
        first = self.weight(self.width, self.pick(WIDTHS[1:]))
        self.pool = [jax.ShapeDtypeStruct((2, self.width), jnp.float32)]
        self.push("dense", lambda p, pool: pool[0] @ p[first])
        for _ in range(steps):
            self.step()
        out = 3
        readers = []
        for i, tensor in enumerate(self.pool[1:], 1):
            name = self.weight(*tensor.shape[1:], out) if len(tensor.shape) > 1 else self.weight(out)
            readers.append((i, name))

        def read(p: dict, pool: list) -> Any:
            total = 0.0
            for i, name in readers:
                axes = list(range(1, pool[i].ndim))
                total = total + jax.lax.dot_general(pool[i], p[name], ((axes, [axis - 1 for axis in axes]), ((), ())))
            return total

        self.last = read

    def pick(self, options: Any) -> Any:
        return options[self._choose(len(options))]

    def weight(self, *shape: int, positive: bool = False) -> str:
        name = f"w{len(self.params)}"
        value = self._rng.standard_normal(shape) * max(np.prod(shape[:-1]), 1) ** -0.5
        self.params[name] = jnp.asarray(np.abs(value) + 0.5 if positive else value, jnp.float32)
        return name

    def push(self, name: str, step: Callable[[dict, list], Any]) -> None:
        """Takes a step whose result is added to the pool."""
        self.pool.append(jax.eval_shape(step, self.params, self.pool))
        self.steps.append(step)
        self.names.append(name)

    def fn(self, params: dict, x: Any) -> Any:
        pool = [x]
        for step in self.steps:
            pool.append(step(params, pool))
        return self.last(params, pool)

    def tensor(self, rank: int = 2) -> int:
        """The place of a tensor of this rank at least, the newest with most chances."""
        able = [i for i, tensor in enumerate(self.pool) if len(tensor.shape) >= rank and i]
        if not able:
            return -1
        return able[-1 - min(self._choose(len(able)), self._choose(len(able)))]

    def step(self) -> None:
        name = self.pick(list(_STEPS))
        made = _STEPS[name](self)
        if made is not None:
            self.push(name, made)


_Made = Callable[[dict, list], Any] | None
_STEPS: dict[str, Callable[[Builder], _Made]] = {}


def _step(make: Callable[[Builder], _Made]) -> Callable[[Builder], _Made]:
    _STEPS[make.__name__.strip("_")] = make
    return make


@_step
def _dense(b: Builder) -> _Made:
    i = b.tensor()
    width = b.pool[i].shape[-1]
    same = [name for name, value in b.params.items() if value.ndim == 2 and width in value.shape]
    if same and b.pick((False, False, True)):  # tied
        name = b.pick(same)
        flip = b.params[name].shape[0] != width
        return lambda p, pool: pool[i] @ (p[name].T if flip else p[name])
    name = b.weight(width, b.pick(WIDTHS))
    if b.pick((False, True)):
        bias = b.weight(b.params[name].shape[-1])
        return lambda p, pool: pool[i] @ p[name] + p[bias]
    return lambda p, pool: pool[i] @ p[name]


@_step
def _residual(b: Builder) -> _Made:
    i = b.tensor()
    width, inner = b.pool[i].shape[-1], b.pick(WIDTHS)
    up, down, bias = b.weight(width, inner), b.weight(inner, width), b.weight(inner)
    act = b.pick((jax.nn.relu, jax.nn.gelu, jax.nn.sigmoid, jnp.tanh, jax.nn.softplus))
    return lambda p, pool: pool[i] + act(pool[i] @ p[up] + p[bias]) @ p[down]


@_step
def _activation(b: Builder) -> _Made:
    i = b.tensor()
    act = b.pick(
        (
            jax.nn.relu,
            jnp.tanh,
            jax.nn.gelu,
            jax.nn.sigmoid,
            jax.nn.relu6,
            jax.nn.silu,
            jax.nn.leaky_relu,
            jnp.square,
            jnp.cos,
            lambda x: jnp.clip(x, -1, 1),
            lambda x: jnp.where(x > 0.1, x, 0),
            lambda x: jnp.where(x > 0.1, x, 0.3),
            lambda x: x / (1 + jnp.abs(x)),
            lambda x: jnp.abs(x) + 1.0,
        )
    )
    return lambda p, pool: act(pool[i])


@_step
def _pair(b: Builder) -> _Made:
    i = b.tensor()
    same = [j for j, other in enumerate(b.pool) if j and other.shape == b.pool[i].shape]
    j = b.pick(same)
    op = b.pick((jnp.add, jnp.multiply, jnp.subtract, jnp.maximum, lambda x, y: x / (1 + y * y)))
    return lambda p, pool: op(pool[i], pool[j])


@_step
def _scale(b: Builder) -> _Made:
    i = b.tensor()
    shape = b.pool[i].shape[1:]
    axes = [axis for axis in range(len(shape)) if b.pick((True, False))]
    name = b.weight(*[n if axis in axes else 1 for axis, n in enumerate(shape)])
    op = b.pick((jnp.add, jnp.multiply))
    return lambda p, pool: op(pool[i], p[name])


@_step
def _constant(b: Builder) -> _Made:
    i = b.tensor()
    value = np.asarray(np.random.default_rng(1).standard_normal(b.pool[i].shape[1:]), np.float32)
    value[..., :1] = 0
    op = b.pick((jnp.add, jnp.multiply))
    return lambda p, pool: op(pool[i], value)


@_step
def _count(b: Builder) -> _Made:
    i = b.tensor()
    return lambda p, pool: pool[i] * (1 + jnp.arange(pool[i].shape[-1]))


@_step
def _reshape(b: Builder) -> _Made:
    i = b.tensor()
    shape = b.pool[i].shape
    outer = b.pick([n for n in range(1, shape[-1] + 1) if shape[-1] % n == 0])
    return lambda p, pool: pool[i].reshape(-1, *shape[1:-1], outer, shape[-1] // outer)


@_step
def _merge(b: Builder) -> _Made:
    i = b.tensor(3)
    if i < 0:
        return None
    shape = b.pool[i].shape
    at = 1 + b._choose(len(shape) - 2)
    return lambda p, pool: pool[i].reshape(-1, *shape[1:at], shape[at] * shape[at + 1], *shape[at + 2 :])


@_step
def _swap(b: Builder) -> _Made:
    i = b.tensor(3)
    if i < 0:
        return None
    at = 1 + b._choose(len(b.pool[i].shape) - 2)
    return lambda p, pool: jnp.swapaxes(pool[i], at, at + 1)


@_step
def _concatenate(b: Builder) -> _Made:
    i = b.tensor()
    same = [j for j, other in enumerate(b.pool) if j and other.shape[:-1] == b.pool[i].shape[:-1]]
    j = b.pick(same)
    return lambda p, pool: jnp.concatenate([pool[i], pool[j]], -1)


@_step
def _stack(b: Builder) -> _Made:
    i = b.tensor()
    same = [j for j, other in enumerate(b.pool) if j and other.shape == b.pool[i].shape]
    j, at = b.pick(same), 1 + b._choose(len(b.pool[i].shape))
    return lambda p, pool: jnp.stack([pool[i], pool[j]], at)


@_step
def _slice(b: Builder) -> _Made:
    i = b.tensor()
    width = b.pool[i].shape[-1]
    start, step = b._choose(width), b.pick((1, 1, 2, 3))
    stop = start + 1 + b._choose(width - start)
    return lambda p, pool: pool[i][..., start:stop:step]


@_step
def _halves(b: Builder) -> _Made:
    i = b.tensor()
    width = b.pool[i].shape[-1]
    if width % 2:
        return None
    if b.pick((True, False)):
        return lambda p, pool: pool[i] + jnp.concatenate([-pool[i][..., width // 2 :], pool[i][..., : width // 2]], -1)

    def interleaved(p: dict, pool: list) -> Any:
        even, odd = pool[i][..., ::2], pool[i][..., 1::2]
        return pool[i] + jnp.stack([-odd, even], -1).reshape(pool[i].shape)

    return interleaved


@_step
def _thirds(b: Builder) -> _Made:
    i = b.tensor()
    n = b.pick((2, 3))
    if b.pool[i].shape[-1] % n:
        return None

    def gated(p: dict, pool: list) -> Any:
        first, *rest = jnp.split(pool[i], n, -1)
        return jnp.tanh(first) * rest[-1]

    return gated


@_step
def _pad(b: Builder) -> _Made:
    i = b.tensor()
    low, high, value = b._choose(3), b._choose(3), b.pick((0.0, 0.0, 1.0))
    return lambda p, pool: jnp.pad(pool[i], [(0, 0)] * (pool[i].ndim - 1) + [(low, high)], constant_values=value)


@_step
def _reduce(b: Builder) -> _Made:
    i = b.tensor()
    at = 1 + b._choose(len(b.pool[i].shape) - 1)
    keep = b.pick((True, False)) or len(b.pool[i].shape) == 2
    op = b.pick((jnp.sum, jnp.mean, jnp.max, jnp.min, jnp.var))
    return lambda p, pool: op(pool[i], axis=at, keepdims=keep)


@_step
def _normed(b: Builder) -> _Made:
    i = b.tensor()
    at = 1 + b._choose(len(b.pool[i].shape) - 1)
    kind = b.pick(("fast", "slow", "rms", "softmax", "sum"))

    def norm(p: dict, pool: list) -> Any:
        x = pool[i]
        mean = x.mean(at, keepdims=True)
        square = (x * x).mean(at, keepdims=True)
        if kind == "fast":
            return (x - mean) * jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + 0.1)
        if kind == "slow":
            return (x - mean) * jax.lax.rsqrt(x.var(at, keepdims=True) + 0.1)
        if kind == "rms":
            return x * jax.lax.rsqrt(square + 0.1)
        return jax.nn.softmax(x, at) if kind == "softmax" else x / (1 + jnp.abs(x).sum(at, keepdims=True))

    scale = b.weight(*b.pool[i].shape[1:])
    return lambda p, pool: norm(p, pool) * p[scale]


@_step
def _attention(b: Builder) -> _Made:
    i = b.tensor(3)
    if i < 0 or len(b.pool[i].shape) != 3:
        return None
    width, heads, depth = b.pool[i].shape[-1], b.pick((1, 2, 3)), b.pick((1, 2, 4))
    q, k, v = (b.weight(width, heads * depth) for _ in range(3))
    out = b.weight(heads * depth, width)

    def attention(p: dict, pool: list) -> Any:
        x = pool[i]
        split = lambda name: (x @ p[name]).reshape(*x.shape[:2], heads, depth)  # noqa: E731
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", split(q), split(k)))
        return x + jnp.einsum("bhqk,bkhd->bqhd", weights, split(v)).reshape(*x.shape[:2], heads * depth) @ p[out]

    return attention


@_step
def _products(b: Builder) -> _Made:
    i = b.tensor(3)
    if i < 0 or len(b.pool[i].shape) != 3:
        return None
    equation = b.pick(("bij,bkj->bik", "bij,bik->bjk", "bij,bij->bi", "bij,bij->bj", "bij,bij->bij", "bij,bik->bijk"))
    return lambda p, pool: jnp.einsum(equation, pool[i], pool[i])


@_step
def _einsum(b: Builder) -> _Made:
    i = b.tensor(3)
    if i < 0 or len(b.pool[i].shape) != 3:
        return None
    _, n, m = b.pool[i].shape
    width = b.pick(WIDTHS)
    equation, shape = b.pick(
        (
            ("bnm,nmw->bw", (n, m, width)),
            ("bnm,nmw->bnw", (n, m, width)),
            ("bnm,nw->bwm", (n, width)),
            ("bnm,nmw->bwnm", (n, m, width)),
            ("bnm,wm->bnw", (width, m)),
        )
    )
    name = b.weight(*shape)
    return lambda p, pool: jnp.einsum(equation, pool[i], p[name])


@_step
def _along(b: Builder) -> _Made:
    i = b.tensor()
    at = 1 + b._choose(len(b.pool[i].shape) - 1)
    op = b.pick((jnp.cumsum, jnp.flip, jnp.sort, jnp.cumprod, lambda x, axis: jnp.roll(x, 1, axis)))
    return lambda p, pool: op(pool[i], axis=at)


@_step
def _chosen(b: Builder) -> _Made:
    i = b.tensor()
    index = np.asarray([b._choose(b.pool[i].shape[-1]) for _ in range(3)])
    if b.pick((True, False)):
        return lambda p, pool: pool[i][..., index]
    return lambda p, pool: pool[i][..., index[0]][..., None]


@_step
def _written(b: Builder) -> _Made:
    i = b.tensor()
    at = b._choose(b.pool[i].shape[-1])
    shape, kind = b.pool[i].shape, b._choose(4)
    if kind == 0:
        return lambda p, pool: pool[i].at[..., at].set(0.5)
    if kind == 1:
        return lambda p, pool: pool[i].at[..., : at + 1].add(pool[i][..., : at + 1])
    if kind == 2:
        return lambda p, pool: jax.lax.dynamic_update_slice_in_dim(pool[i], pool[i][..., :1], at, -1)
    return lambda p, pool: jnp.ones((len(pool[i]), *shape[1:-1], 9)).at[..., jnp.arange(shape[-1])].set(pool[i])


@_step
def _embedded(b: Builder) -> _Made:
    i = b.tensor()
    name = b.weight(5, b.pool[i].shape[-1])
    return lambda p, pool: pool[i] + p[name][jnp.arange(pool[i].shape[-2]) % 5]


@_step
def _scan(b: Builder) -> _Made:
    i = b.tensor()
    width = b.pool[i].shape[-1]
    name, zero = b.weight(width, width), b.pick((True, False))
    stacked = b.weight(2, width, width) if b.pick((True, False)) else None

    def scan(p: dict, pool: list) -> Any:
        x = pool[i]

        def turn(carry: Any, layer: Any) -> Any:
            kernel = p[name] if layer is None else layer
            carry = carry + 0.5 * jnp.tanh((carry + x) @ kernel)
            return carry, carry

        start = jnp.zeros_like(x) if zero else x
        layers = None if stacked is None else p[stacked]
        last, every = jax.lax.scan(turn, start, layers, length=2, reverse=zero)
        return last + every[0]

    return scan


@_step
def _control(b: Builder) -> _Made:
    i = b.tensor()
    width = b.pool[i].shape[-1]
    name = b.weight(width, width)
    kind = b._choose(4)
    if kind == 0:
        return lambda p, pool: jax.lax.cond(pool[0].sum() > 0, lambda x: x @ p[name], lambda x: -x, pool[i])
    if kind == 1:
        return lambda p, pool: jax.lax.fori_loop(0, 2, lambda _, x: x + 0.5 * jnp.tanh(x @ p[name]), pool[i])
    if kind == 2:
        return lambda p, pool: jax.checkpoint(lambda x: jax.nn.silu(x @ p[name]) + x)(pool[i])
    return lambda p, pool: jax.jit(jax.nn.silu)(jax.jit(jax.nn.silu)(pool[i] @ p[name]))


@_step
def _conv(b: Builder) -> _Made:
    i = b.tensor(3)
    if i < 0 or len(b.pool[i].shape) != 3:
        return None
    _, length, width = b.pool[i].shape
    groups = b.pick([n for n in range(1, width + 1) if width % n == 0])
    window, stride = b.pick((1, 2, 3)), b.pick((1, 2))
    name = b.weight(window, width // groups, groups * b.pick((1, 2, 3)))
    padding = "SAME" if window > length or b.pick((True, False)) else "VALID"
    return lambda p, pool: jax.lax.conv_general_dilated(
        pool[i], p[name], (stride,), padding, dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups
    )


@_step
def _pooled(b: Builder) -> _Made:
    i = b.tensor(3)
    if i < 0 or len(b.pool[i].shape) != 3 or b.pool[i].shape[1] < 2:
        return None
    op, start = b.pick(((jax.lax.max, -jnp.inf), (jax.lax.add, 0.0)))
    return lambda p, pool: jax.lax.reduce_window(pool[i], start, op, (1, 2, 1), (1, 1, 1), "VALID")


@_step
def _tiled(b: Builder) -> _Made:
    i = b.tensor()
    if b.pool[i].size > 200:
        return None
    kind = b._choose(3)
    if kind == 0:
        return lambda p, pool: jnp.tile(pool[i], (1,) * (pool[i].ndim - 1) + (2,))
    if kind == 1:
        return lambda p, pool: jnp.repeat(pool[i], 2, -1)
    return lambda p, pool: jnp.broadcast_to(pool[i][:, None], (len(pool[i]), 3, *pool[i].shape[1:]))


@_step
def _mixed_weight(b: Builder) -> _Made:
    """A weight that is made of weights: standardised, of low rank, or joined of two."""
    i = b.tensor()
    width, out, kind = b.pool[i].shape[-1], b.pick(WIDTHS[1:]), b._choose(3)
    whole, left, right = b.weight(width, out), b.weight(width, 2), b.weight(2, out)
    if kind == 0:
        return lambda p, pool: pool[i] @ ((p[whole] - p[whole].mean(0)) / (0.5 + p[whole].std(0)))
    if kind == 1:
        return lambda p, pool: pool[i] @ (p[whole] + p[left] @ p[right])
    return lambda p, pool: pool[i] @ jnp.concatenate([p[whole], p[left]], -1)


@_step
def _transposed(b: Builder) -> _Made:
    i = b.tensor(3)
    if i < 0 or len(b.pool[i].shape) != 3:
        return None
    name = b.weight(b.pick((1, 2, 3)), b.pool[i].shape[-1], b.pick(WIDTHS))
    flip = b.pick((True, False))

    def transposed(p: dict, pool: list) -> Any:
        kernel = p[name].swapaxes(1, 2) if flip else p[name]
        return jax.lax.conv_transpose(
            pool[i], kernel, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), transpose_kernel=flip
        )

    return transposed


@_step
def _places(b: Builder) -> _Made:
    """What an index is told apart by: masks of places, the first of all, the greatest, the sum one by one."""
    i = b.tensor()
    width, kind = b.pool[i].shape[-1], b._choose(6)
    if kind == 0:
        return lambda p, pool: jnp.where(jnp.arange(width) % 2 == 0, pool[i], 0)
    if kind == 1:
        return lambda p, pool: jnp.where(jnp.arange(width) < 2, jnp.tanh(pool[i]), 0.5)
    if kind == 2:
        return lambda p, pool: pool[i] * pool[i][..., :1]
    if kind == 3:
        return lambda p, pool: jax.lax.top_k(pool[i], min(2, width))[0]
    if kind == 4:
        return lambda p, pool: sum(jnp.unstack(pool[i], axis=-1))[..., None] * pool[i]
    return lambda p, pool: jax.nn.one_hot(jnp.argmax(pool[i], -1), width) * pool[i]


@_step
def _own_rule(b: Builder) -> _Made:
    """A function with a derivative of its own."""
    i = b.tensor()
    name, kind = b.weight(b.pool[i].shape[-1], b.pick(WIDTHS)), b._choose(3)

    @jax.custom_vjp
    def product(x: Any, w: Any) -> Any:
        return x @ w

    def pull(kept: Any, g: Any) -> Any:
        x, w = kept
        return g @ w.T, jnp.einsum("...i,...o->io", x, 2 * g)

    product.defvjp(lambda x, w: (x @ w, (x, w)), pull)

    @jax.custom_jvp
    def half(x: Any, w: Any) -> Any:
        return jnp.tanh(x) @ w

    half.defjvp(lambda primals, tangents: (half(*primals), 0.5 * (tangents[0] @ primals[1])))

    @jax.custom_vjp
    def through(x: Any) -> Any:
        return jnp.round(2 * x) / 2

    through.defvjp(lambda x: (through(x), x), lambda x, g: (g * (jnp.abs(x) < 1),))
    if kind == 2:
        return lambda p, pool: through(pool[i]) @ p[name]
    return lambda p, pool: (product if kind else half)(pool[i], p[name])


@_step
def _numbers(b: Builder) -> _Made:
    i = b.tensor()
    dtype = b.pick((jnp.int32, jnp.bfloat16, jnp.bool_))
    return lambda p, pool: pool[i] + (2 * jax.lax.stop_gradient(pool[i])).astype(dtype).astype(jnp.float32)


@_step
def _gated(b: Builder) -> _Made:
    """Squeeze and excite along the last axis."""
    i = b.tensor(3)
    if i < 0:
        return None
    width = b.pool[i].shape[-1]
    down, up = b.weight(width, 3), b.weight(3, width)

    def gated(p: dict, pool: list) -> Any:
        x = pool[i]
        mean = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
        return x * jax.nn.sigmoid(jax.nn.relu(mean @ p[down]) @ p[up])

    return gated


def drawn_gates(b: Builder, graph: pj.Graph, choose: Choose) -> tuple[dict, Any, dict[str, Any]]:
    """(params, gates, units): units of groups closed by hand, or slices of weights closed and zeroed with no regard."""
    params = b.params
    able = [group for group in graph.groups.values() if group.prunable and group.exact]
    if able and choose(3):
        units = {}
        for group in able:
            if choose(2):
                closed = [unit for unit in range(group.size) if choose(2)]
                units[group.name] = closed
        return params, pj.close_groups(graph, params, units), units
    gates, changed = {}, dict(params)
    rng = np.random.default_rng(choose(1000))
    for name, value in params.items():
        gate = np.ones(value.shape, bool)
        for axis, size in enumerate(value.shape):
            for unit in range(size):
                if not rng.integers(3):
                    gate[(slice(None),) * axis + (unit,)] = False
        if rng.integers(3):
            gates[name] = jnp.asarray(gate)
        else:  # 0 for another reason
            gates[name] = None
            changed[name] = value * gate
    return changed, gates, {}


def check(choose: Choose, steps: int, gradient: bool = False) -> str | None:
    """Draws a network and a cut. What is wrong with it; "" if it computes what the gated network does, None if nothing
    of it was cut."""
    b = Builder(choose, steps)
    x = jnp.asarray(np.random.default_rng(7).standard_normal((2, b.width)), jnp.float32)
    graph = pj.trace(b.fn, b.params, x)
    params, gates, units = drawn_gates(b, graph, choose)
    masked = pj.masked(params, gates)
    small, small_fn = pj.shrink(graph, params, gates)
    cut = graph.dropped(params, gates)
    convolved = graph.convolved()
    for name, closed in units.items():
        at_least = 1 if graph.atoms[name] in convolved else 0
        wanted = min(len(closed), graph.groups[name].size - at_least)
        if cut[name][closed].sum() < wanted:  # more, where all of a weight is closed
            return f"{int(cut[name].sum())} units of {name} are cut, and {wanted} are closed"
    if not any(drop.any() for drop in cut.values()):
        return None
    x = jnp.concatenate([x, 2 * x[:1]])

    def value(fn: Callable) -> Callable:
        return lambda p, x: (jnp.sum(jnp.sin(out := fn(p, x))), out)

    def made(fn: Callable, p: Any) -> Any:
        if gradient:
            return jax.jit(jax.grad(value(fn), has_aux=True), compiler_options=FAST)(p, x)
        return None, jax.jit(fn, compiler_options=FAST)(p, x)

    (grads, wanted), (small_grads, got) = made(b.fn, masked), made(small_fn, small)
    if not _same(wanted, got):
        return f"the network is off: {np.asarray(wanted).tolist()} and cut {np.asarray(got).tolist()}"
    if gradient and units:
        theirs = trees.by_name(pj.shrink_like(graph, cut, grads))
        for name, ours in trees.by_name(small_grads).items():
            if not _same(theirs[name], ours, 1e-3):
                return f"the gradient of {name} is off: {np.asarray(theirs[name])} and cut {np.asarray(ours)}"
    return ""


def _same(a: Any, b: Any, tolerance: float = 1e-4) -> bool:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return False
    able = np.isfinite(a) & (np.abs(a) < 1e4)  # beyond, float32 says nothing
    scale = max(np.abs(a[able]).max(initial=0.0), 1e-2)
    return bool(np.all(np.abs(a - b)[able] <= tolerance * scale))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--gradient", action="store_true")
    args = parser.parse_args()
    start, wrong, cut = time.time(), 0, 0
    for seed in range(args.seed, args.seed + args.count):
        rng = np.random.default_rng(seed)
        choose = lambda n, rng=rng: int(rng.integers(n))  # noqa: E731
        try:
            said = check(choose, 2 + choose(args.steps), args.gradient)
        except Exception:
            said = traceback.format_exc(limit=-3)
        cut += said is not None
        if seed % 50 == 49:
            jax.clear_caches()
        if said:
            wrong += 1
            print(f"seed {seed}: {said}", flush=True)
    print(f"{args.count} networks, {cut} cut, {wrong} wrong, {time.time() - start:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
