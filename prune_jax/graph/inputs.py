"""What flows into kernels: second moments of their inputs over calibration data, without a hook in the model."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prune_jax.graph.traced import Traced

Tree = Any


class Moments(NamedTuple):
    """The second moments of a kernel's inputs.

    Attributes:
      sums: (inputs, inputs) float32, the sum of x x^T; or (inputs,), its diagonal. The inputs are the kernel's
        contracted axes, flattened in their order; a convolution's are its window and its input features.
      number: () int32, how many x it is over: rows, tokens or pixels.
    """

    sums: jax.Array
    number: jax.Array


def of_call(batch: Any) -> tuple:
    """The inputs of one call: a tuple or list of them as it is; anything else, such as an array or a dict, is one."""
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def moments(
    graph: Traced,
    params: Tree,
    batches: Iterable[Any],
    kernels: Sequence[str] | None = None,
    diagonal: bool = False,
) -> dict[str, Moments]:
    """Streams batches through a network and sums the second moments of what its kernels read.

    Memory: the square of a kernel's inputs in float32 for each kernel that is asked for (38 MB for 3,072 inputs), and
    one batch's activations. Ask for few kernels at a time where that is too much.

    Args:
      graph: of the function; params: its weights.
      batches: each the inputs of one call, a tuple, or an array or a dict where there is one.
      kernels: names; None, all that the graph found.
      diagonal: whether only the sums of squares are wanted.
    Returns:
      name -> Moments. A kernel that is used several times has the sum; one that a scan runs over has one per turn,
      along a first axis.
    Raises:
      ValueError: a name that is no kernel, no batch at all, or moments that are not finite, with the kernel and batch.
    """
    wanted = list(graph.kernels) if kernels is None else list(kernels)
    for name in wanted:
        if name not in graph.kernels:
            raise ValueError(f"there is no kernel {name!r}; allowed: {', '.join(graph.kernels)}")

    @jax.jit
    def of_batch(params: Tree, batch: Any) -> dict[str, Moments]:
        caught: dict[tuple[str, tuple[int, ...]], Moments] = {}

        def hook(frame: Any, number: int, operands: list[Any], turns: tuple[int, ...]) -> None:
            for _, side, name in graph.uses_at(frame, number):
                if name in wanted:
                    new = _of_operand(frame.jaxpr.eqns[number], side, operands, diagonal)
                    old = caught.get((name, turns))
                    caught[name, turns] = new if old is None else jax.tree.map(jnp.add, old, new)

        evaluation, _ = graph.evaluation(batch, {}, hook)
        evaluation(*jax.tree.leaves(params), *jax.tree.leaves(batch))
        return {name: _stacked(caught, name) for name in dict.fromkeys(name for name, _ in caught)}

    total: dict[str, Moments] | None = None
    for i, batch in enumerate(batches):
        caught = of_batch(params, of_call(batch))
        for name, one in caught.items():
            if not bool(jnp.isfinite(one.sums).all()):
                raise ValueError(f"the inputs of {name} are not finite in batch {i}")
        total = caught if total is None else jax.tree.map(jnp.add, total, caught)
    if total is None:
        raise ValueError("there is no batch; allowed: at least one")
    if missing := [name for name in wanted if name not in total]:
        raise ValueError(f"{missing[0]} is used inside a cond or a while only, where its inputs are not to be had")
    return total


def _stacked(caught: dict[tuple[str, tuple[int, ...]], Moments], name: str) -> Moments:
    """The moments of a kernel, those of a scan's turns stacked in their order."""
    turns = sorted(turns for own, turns in caught if own == name)
    if turns == [()]:
        return caught[name, ()]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(caught[name, turn] for turn in turns))


def _of_operand(eqn: Any, side: int, operands: list[Any], diagonal: bool) -> Moments:
    """The moments of the operand that a contraction meets its kernel (operand `side`) with."""
    other = operands[1 - side].astype(jnp.float32)
    if eqn.primitive.name == "dot_general":
        contracted, _ = eqn.params["dimension_numbers"]
        axes = contracted[1 - side]
        rows = jnp.moveaxis(other, axes, range(other.ndim - len(axes), other.ndim))
        rows = rows.reshape(-1, math.prod(other.shape[i] for i in axes))
    else:
        rows = patches(eqn, other)
    sums = jnp.sum(jnp.square(rows), 0) if diagonal else jnp.dot(rows.T, rows, precision=jax.lax.Precision.HIGHEST)
    return Moments(sums, jnp.int32(rows.shape[0]))


def patches(eqn: Any, inputs: jax.Array) -> jax.Array:
    """(pixels, window * features): what a convolution's kernel meets, features innermost; groups are not told apart."""
    params = eqn.params
    lhs, rhs, _ = params["dimension_numbers"]
    window = [eqn.invars[1].aval.shape[i] for i in rhs[2:]]
    moved = jnp.transpose(inputs, (lhs[0], lhs[1], *lhs[2:]))
    patches = jax.lax.conv_general_dilated_patches(
        moved,
        window,
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        precision=jax.lax.Precision.HIGHEST,
    )
    batch, _, *space = patches.shape  # (batch, features * window, space): features outermost
    patches = patches.reshape(batch, moved.shape[1], math.prod(window), math.prod(space))
    return jnp.transpose(patches, (0, 3, 2, 1)).reshape(batch * math.prod(space), -1)
