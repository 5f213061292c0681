"""flax.nnx modules cut in place, so that the user keeps a module: smaller arrays, and layers that know their sizes.

A module computes with its own code at the smaller sizes, so that not all can be cut that the function's jaxpr allows: a
LayerNorm divides by the width that it sees, attention by the root of its depth. Groups that run through the scale of a
norm over features, and groups of depth, stay as they are.
"""

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.graph.graph import Graph, trace
from prune_jax.pruning import gates as gates_lib

if TYPE_CHECKING:
    from flax import nnx

Tree = Any
_TOLERANCE = 1e-3  # relative, of the check on the example inputs: what differs more computes something else


def _split(model: Any) -> tuple[Any, Any, Any]:
    """(definition, the floating variables as a State, all other variables)."""
    from flax import nnx

    def floating(path: Any, value: Any) -> bool:
        array = getattr(value, "value", value) if isinstance(value, nnx.Variable) else value
        return isinstance(value, nnx.Variable) and jnp.issubdtype(getattr(array, "dtype", np.int32), jnp.floating)

    definition, floats, others = nnx.split(model, floating, ...)  # type: ignore[misc]
    return definition, floats, others


def trace_module(model: "nnx.Module", *inputs: Any) -> Graph:
    """The graph of a flax.nnx module that is called with these inputs.

    Its params are all floating variables, statistics of a BatchNorm among them, by the names of nnx.state. Put the
    module in the mode that it is to be used in first, as by model.eval().

    Args:
      model: a flax.nnx.Module; inputs: of __call__, arrays or their shapes.
    Example:
      >>> from flax import nnx
      >>> import prune_jax as pj
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1)))
      >>> [name for name, group in pj.trace_module(model, jnp.ones((1, 4))).groups.items() if group.prunable]
      ['layers.0']
    """
    from flax import nnx

    definition, floats, others = _split(model)

    def fn(params: Any, *args: Any) -> Any:
        own = jax.tree.map(lambda leaf: leaf, others)  # variables of its own; a deepcopy of a PRNG key cannot be traced
        return nnx.merge(definition, params, own)(*args)

    return trace(fn, floats, *inputs)


def shrink_module(model: "nnx.Module", gates: Tree, *inputs: Any, multiple_of: int = 1) -> "nnx.Module":
    """Cuts the closed units out of a flax.nnx module, in place, and returns it.

    Linear, LinearGeneral, Einsum, Conv, ConvTranspose, Embed, the norms, MultiHeadAttention and the recurrent cells
    know their new sizes afterwards.

    Args:
      model: the module, whose weights need not be masked; it is left with the weights of closed gates at 0.
      gates: as of pj.gates(optimizer) or pj.close_groups of trace_module's graph.
      inputs: an example of what the module is called with.
      multiple_of: as of shrink.
    Raises:
      ValueError: the smaller module computes something else on the inputs, such as one that reshapes by a size of its
        own; it is then as it was. pj.shrink cuts such a network, too.
    Example:
      >>> from flax import nnx
      >>> import prune_jax as pj
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1)))
      >>> g = pj.trace_module(model, jnp.ones((1, 4)))
      >>> gates = pj.close_groups(g, nnx.state(model, nnx.Param), {"layers.0": [0, 1]})
      >>> pj.shrink_module(model, gates, jnp.ones((1, 4))).layers[0].out_features
      6
    """
    from flax import nnx

    graph = trace_module(model, *inputs)
    _, floats, others = _split(model)
    masked = gates_lib.masked(floats, gates)
    cut = graph.dropped(masked, gates, multiple_of=multiple_of)
    normed = _normed(model)
    cut = {
        name: drop
        for name, drop in cut.items()
        if graph.groups[name].kind != "depth" and not normed & {member.name for member in graph.groups[name].members}
    }
    evaluation, _ = graph.evaluation(graph.example_inputs, cut)
    small = jax.tree.unflatten(
        jax.tree.structure(masked),
        [evaluation.take(leaf, axes) for leaf, axes in zip(jax.tree.leaves(masked), graph.param_axes, strict=True)],
    )
    wanted = jax.jit(graph.fn)(masked, *inputs)
    before = copy.deepcopy(nnx.split(model)[1])
    sizes = {id(module): _sizes(module) for _, module in nnx.iter_modules(model)}
    nnx.update(model, small)
    for _, module in nnx.iter_modules(model):
        _tell_sizes(module)
    try:
        problem = _differs(nnx.merge(nnx.graphdef(model), nnx.state(model), copy=True), wanted, inputs)
    except (TypeError, ValueError) as error:
        problem = str(error).splitlines()[0]
    if problem:
        nnx.update(model, before)
        for _, module in nnx.iter_modules(model):
            for name, size in sizes[id(module)].items():
                setattr(module, name, size)
        raise ValueError(
            f"the module without its closed units is another: {problem}; pj.shrink cuts the function instead"
        )
    del others
    return model


def _differs(model: Any, wanted: Any, inputs: Sequence[Any]) -> str | None:
    for ours, theirs in zip(jax.tree.leaves(model(*inputs)), jax.tree.leaves(wanted), strict=True):
        if ours.shape != theirs.shape:
            return f"it returns {ours.shape}, and {theirs.shape} before"
        most = float(jnp.max(jnp.abs(theirs), initial=0.0))
        off = float(jnp.max(jnp.abs(ours - theirs), initial=0.0))
        if not off <= _TOLERANCE * max(most, 1e-6):
            return f"on the example inputs it is off by {off:g}, of values up to {most:g}"
    return None


def _normed(model: Any) -> set[str]:
    """The names of the scales and biases of norms that take their statistics over features."""
    from flax import nnx

    names: set[str] = set()
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.LayerNorm | nnx.RMSNorm | nnx.GroupNorm):
            prefix = "/".join(map(str, path))
            own = [name for name in ("scale", "bias") if getattr(module, name, None) is not None]
            names |= {f"{prefix}/{name}" if prefix else name for name in own}
    return names


_KNOWN = ("in_features", "out_features", "num_features", "features", "num_heads", "head_dim", "qkv_features",
          "feature_group_count", "hidden_features", "num_embeddings", "kernel_shape", "bias_shape")  # fmt: skip


def _sizes(module: Any) -> dict[str, Any]:
    return {name: getattr(module, name) for name in _KNOWN if hasattr(module, name)}


def _tell_sizes(module: Any) -> None:
    """Brings the sizes that a layer of flax.nnx knows of to those of its arrays."""
    from flax import nnx

    if isinstance(module, nnx.Linear):
        module.in_features, module.out_features = module.kernel.shape
    elif isinstance(module, nnx.LinearGeneral):
        inputs = len(module.in_features)
        batch = len(module.kernel.shape) - inputs - len(module.out_features)
        module.in_features = tuple(module.kernel.shape[batch : batch + inputs])
        module.out_features = tuple(module.kernel.shape[batch + inputs :])
    elif isinstance(module, nnx.Conv):
        *_, inner, outer = module.kernel.shape
        if module.feature_group_count > 1:
            per_group = module.out_features // module.feature_group_count
            module.feature_group_count = outer // per_group
            inner *= module.feature_group_count
        module.in_features, module.out_features = inner, outer
    elif isinstance(module, nnx.ConvTranspose):
        *_, module.in_features, module.out_features = module.kernel.shape
    elif isinstance(module, nnx.RNNCellBase):
        reads, carries = ((getattr(module, f"dense_{c}", None) or getattr(module, f"{c}i", None)) for c in "ih")
        if reads is not None and carries is not None:
            cell: Any = module
            cell.in_features, cell.hidden_features = reads.kernel.shape[0], carries.kernel.shape[0]
    elif isinstance(module, nnx.Einsum):
        module.kernel_shape = module.kernel.shape
        module.bias_shape = None if module.bias is None else module.bias.shape
    elif isinstance(module, nnx.Embed):
        module.num_embeddings, module.features = module.embedding.shape
    elif isinstance(module, nnx.BatchNorm | nnx.LayerNorm | nnx.RMSNorm | nnx.GroupNorm):
        array = next(
            (getattr(module, n) for n in ("scale", "bias", "mean") if getattr(module, n, None) is not None), None
        )
        if array is not None:
            module.num_features = array.shape[0]  # type: ignore[union-attr]
    elif isinstance(module, nnx.MultiHeadAttention):
        module.num_heads, module.head_dim = module.query.kernel.shape[-2:]
        module.qkv_features = math.prod(module.query.kernel.shape[-2:])
