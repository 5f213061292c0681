"""flax.nnx modules cut in place, so that the user keeps a module: smaller arrays, and layers that know their sizes.

A module computes with its own code at the smaller sizes, so that not all can be cut that the function's jaxpr allows: a
LayerNorm divides by the width that it sees, attention by the root of its depth. Groups that run through the scale of a
norm over features, and groups of depth that attention divides by, stay, and a warning names them. Of a GroupNorm whole
groups are cut.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, jaxprs_in_params

from prune_jax.graph.cutting import shrink_like
from prune_jax.graph.graph import Graph, trace
from prune_jax.pruning import reading, trees
from prune_jax.pruning.structure import Member

if TYPE_CHECKING:
    from flax import nnx

Tree = Any
_TOLERANCE = 1e-3  # relative, of the check on the example inputs: what differs more computes something else


def _function(model: Any) -> tuple[Callable, Any]:
    """(the module as a function of its floating variables and its inputs, those variables as a State)."""
    from flax import nnx

    def floating(path: Any, value: Any) -> bool:
        array = getattr(value, "value", value) if isinstance(value, nnx.Variable) else value
        return isinstance(value, nnx.Variable) and jnp.issubdtype(getattr(array, "dtype", np.int32), jnp.floating)

    definition, floats, others = nnx.split(model, floating, ...)  # type: ignore[misc]

    def fn(params: Any, *args: Any) -> Any:
        own = jax.tree.map(lambda leaf: leaf, others)  # variables of its own; a deepcopy of a PRNG key cannot be traced
        return nnx.merge(definition, params, own)(*args)

    return fn, floats


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

    fn, floats = _function(model)
    graph = trace(fn, floats, *inputs)
    graph.untrained = frozenset(trees.by_name(floats)) - frozenset(trees.by_name(nnx.state(model, nnx.Param)))
    return graph


def shrink_module(
    model: "nnx.Module", gates: Tree, *inputs: Any, multiple_of: int = 1, optimizer: "nnx.Optimizer | None" = None
) -> "nnx.Module":
    """Cuts the closed units out of a flax.nnx module, in place, and returns it.

    The layers of flax.nnx know their new sizes afterwards: Linear, LinearGeneral, Einsum, Conv, ConvTranspose, Embed,
    LoRA, the norms, MultiHeadAttention and the recurrent cells, also where nnx.vmap stacked them. An optimizer that was
    made before goes on if it is given; or make it after. Closed units that a module needs at their full width, those
    of a norm over features and the depth of attention, stay at 0, and a warning names their groups: pj.shrink cuts
    those, too.

    Args:
      model: the module, whose weights need not be masked; it is left with the weights of closed gates at 0.
      gates: as of pj.close_groups of trace_module's graph, or an optimizer's state.
      inputs: an example of what the module is called with, arrays. The smaller module is compared on it, so let its
        numbers differ.
      multiple_of: as of shrink.
      optimizer: of the model, whose state is cut with it, in place, as by shrink_like.
    Raises:
      ValueError: the smaller module computes something else on the inputs, such as one that reshapes by a size of its
        own; the message names the groups, and pj.shrink cuts such a network, too. Or the optimizer's state is not laid
        out as the weights are. The module and the optimizer are as they were.
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
    masked = reading.masked(_function(model)[1], gates)
    dropped = graph.dropped(masked, gates, multiple_of=multiple_of)
    cut = {name: drop for name, drop in dropped.items() if drop.any()}
    drawn, examples = _drawn(graph, masked, cut), jax.tree.map(_varied, inputs)
    whole = jax.jit(graph.fn).trace(drawn, *examples)
    wanted = _Run(_numbers(whole.jaxpr.jaxpr), whole.lower().compile()(drawn, *examples))
    stay = _split_norms(model, graph, cut)
    for name, drop in cut.items():
        if graph.groups[name].kind == "depth" and (
            problem := _problem(model, graph, drawn, {name: drop}, examples, wanted)
        ):
            stay[name] = problem
    if stay:
        told = "; ".join(f"{name} ({int(cut.pop(name).sum())} units): {reason}" for name, reason in stay.items())
        warnings.warn(f"closed units stay in the module at 0, and pj.shrink cuts them: {told}", stacklevel=2)
    if problem := _problem(model, graph, drawn, cut, examples, wanted):
        alone = {name: _problem(model, graph, drawn, {name: drop}, examples, wanted) for name, drop in cut.items()}
        at_fault = [name for name in alone if alone[name]] or list(cut)
        problem = alone[at_fault[0]] or problem
        raise ValueError(
            f"the module without the closed units of {', '.join(at_fault)} is another: {problem}; {_advice(model)}"
        )
    state = None if optimizer is None else shrink_like(graph, cut, nnx.state(optimizer.opt_state))
    _cut(model, graph, masked, cut)
    if optimizer is not None:
        nnx.update(optimizer.opt_state, state)
    return model


def _cut(model: Any, graph: Graph, floats: Any, cut: Mapping[str, np.ndarray]) -> None:
    """Gives a module these floating variables without the units that are cut, and its layers their sizes."""
    from flax import nnx

    evaluation, _ = graph.evaluation(graph.example_inputs, cut)
    small = [evaluation.take(leaf, axes) for leaf, axes in zip(jax.tree.leaves(floats), graph.param_axes, strict=True)]
    of_name = dict(zip(graph.names, graph.param_axes, strict=True))
    axes_of = {variable: of_name[name] for variable, name in _names(model).items() if name in of_name}
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv) and (axes := axes_of.get(id(module.kernel))):
            per_group = module.out_features // module.feature_group_count
            module.feature_group_count = _runs(evaluation.kept(axes[-1]), per_group, module.feature_group_count)
        if isinstance(module, nnx.Conv | nnx.ConvTranspose) and module.mask is not None:
            module.mask = evaluation.take(module.mask, axes_of[id(module.kernel)])
        if isinstance(module, nnx.GroupNorm) and (array := _first(module, "scale", "bias")) is not None:
            kept = evaluation.kept(axes_of[id(array)][-1])
            module.num_groups = _runs(kept, module.group_size, module.num_groups)
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(floats), small))
    for _, module in nnx.iter_modules(model):
        _tell_sizes(module)


def _runs(kept: np.ndarray | None, length: int, before: int) -> int:
    """How many runs of features of this length have one that stays."""
    return before if kept is None else len(np.unique(kept // length))


def _drawn(graph: Graph, masked: Any, cut: Mapping[str, np.ndarray]) -> Any:
    """The weights with numbers in the place of arrays that are all 0, but for the units that are cut.

    A layer that starts at 0 would hide from a comparison what goes into it.
    """
    leaves = {name: leaf for name, leaf in trees.by_name(masked).items() if not np.any(np.asarray(leaf))}
    draw = np.random.default_rng(0)
    drawn = {name: draw.uniform(0.1, 1, np.shape(leaf)) for name, leaf in leaves.items()}
    for group, drop in cut.items():
        for member in graph.groups[group].members:
            if member.name in drawn:
                gone = drop[member.units] & (member.units >= 0)
                np.moveaxis(drawn[member.name], member.axis, 0)[gone] = 0
    return trees.replaced(masked, {name: jnp.asarray(array, leaves[name].dtype) for name, array in drawn.items()})


def _varied(leaf: Any) -> Any:
    """An input with other numbers if all its numbers are one: tokens that are all the same hide what attention does."""
    if np.size(leaf) < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating) or np.ptp(np.asarray(leaf, np.float32)):
        return leaf
    return jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, leaf.shape), leaf.dtype)


class _Run(NamedTuple):
    """numbers: that are written in a program, in their order; outputs: a tree."""

    numbers: list[float]
    outputs: Any


def _numbers(jaxpr: Any) -> list[float]:
    """The floating-point numbers of a jaxpr, such as what a mean divides by."""
    numbers = []
    for eqn in jaxpr.eqns:
        literals = [var.val for var in eqn.invars if isinstance(var, Literal)]
        numbers += [float(value) for value in literals if jnp.issubdtype(jnp.result_type(value), jnp.floating)]
        for inner in jaxprs_in_params(eqn.params):
            numbers += _numbers(inner)
    return numbers


def _problem(
    model: Any, graph: Graph, floats: Any, cut: Mapping[str, np.ndarray], inputs: Sequence[Any], wanted: _Run
) -> str | None:
    """What a copy of the module without these units does otherwise on the inputs; None if it computes the same."""
    from flax import nnx

    small = nnx.clone(model)
    try:
        _cut(small, graph, floats, cut)
        fn, params = _function(small)
        run = jax.jit(fn).trace(params, *inputs)
        numbers = _numbers(run.jaxpr.jaxpr)
        if len(numbers) == len(wanted.numbers):
            for ours, theirs in zip(numbers, wanted.numbers, strict=True):
                if ours != theirs and not np.isnan(ours):
                    return f"it computes with {ours:g} where {theirs:g} was, by a width that it sees"
        return _differs(run.lower().compile()(params, *inputs), wanted.outputs)
    except Exception as error:  # the module's own code, at sizes that it was not made for
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _differs(ours: Any, theirs: Any) -> str | None:
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if our.shape != their.shape:
            return f"it returns {our.shape}, and {their.shape} before"
        a, b = np.asarray(our, np.float32), np.asarray(their, np.float32)
        most = float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))
        off = float(np.max(np.abs(a - b), initial=0.0, where=a != b))  # a masked logit is -inf in both
        if not off <= _TOLERANCE * max(most, 1e-6):
            return f"on the example inputs it is off by {off:g}, of values up to {most:g}"
    return None


def _advice(model: Any) -> str:
    from flax import nnx

    if any(isinstance(m, nnx.Dropout) and not m.deterministic and m.rate for _, m in nnx.iter_modules(model)):
        return "its Dropout draws anew at another width, so call model.eval() first"
    return "leave them open, or cut the function by pj.shrink"


def _names(model: Any) -> dict[int, str]:
    """id of a variable -> its name in the graph; a variable at several places has that of the first."""
    from flax import nnx

    return {id(v): "/".join(map(str, path)) for path, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)}


def _first(module: Any, *names: str) -> Any:
    """The first of these arrays that a module has, or None."""
    return next((array for name in names if (array := getattr(module, name, None)) is not None), None)


def _norms(model: Any) -> dict[str, int]:
    """Name of the scale or bias of a norm over features -> how many features share their statistics."""
    from flax import nnx

    names = _names(model)
    norms: dict[str, int] = {}
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.LayerNorm | nnx.RMSNorm | nnx.GroupNorm):
            shared: Any = module.group_size if isinstance(module, nnx.GroupNorm) else module.num_features
            arrays = [_first(module, name) for name in ("scale", "bias")]
            norms |= {names[id(array)]: shared for array in arrays if array is not None}
    return norms


def _split_norms(model: Any, graph: Graph, cut: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Name of a group, a part of whose cut units share a norm's statistics with others -> which norm that is."""
    norms, split = _norms(model), {}
    for group, drop in cut.items():
        for member in graph.groups[group].members:
            if _splits_norm(norms, member, drop):
                split[group] = f"the norm of {member.name} divides by the width that it sees"
    return split


def _splits_norm(norms: Mapping[str, int], member: Member, drop: np.ndarray) -> bool:
    """Whether a cut leaves a part of the features that share their statistics; drop: (units,) bool."""
    if member.name not in norms or len(member.units) % norms[member.name]:
        return False
    gone = (drop[member.units] & (member.units >= 0)).reshape(-1, norms[member.name])
    return bool((gone.any(1) & ~gone.all(1)).any())


def _tell_sizes(module: Any) -> None:
    """Brings the sizes that a layer of flax.nnx knows of to those of its arrays, whose last axes count.

    Axes before them are of copies that nnx.vmap stacked.
    """
    from flax import nnx

    if isinstance(module, nnx.Linear):
        module.in_features, module.out_features = module.kernel.shape[-2:]
    elif isinstance(module, nnx.LinearGeneral):
        inputs = len(module.in_features)
        batch = len(module.kernel.shape) - inputs - len(module.out_features)
        module.in_features = tuple(module.kernel.shape[batch : batch + inputs])
        module.out_features = tuple(module.kernel.shape[batch + inputs :])
        counted = module.kernel.shape[batch - len(module.batch_axis) : batch]
        module.batch_axis = type(module.batch_axis)(zip(module.batch_axis, counted, strict=True))
    elif isinstance(module, nnx.Conv | nnx.ConvTranspose):
        module.kernel_shape = tuple(module.kernel.shape[-len(module.kernel_shape) :])
        inner, outer = module.kernel_shape[-2:]
        if isinstance(module, nnx.Conv):
            inner *= module.feature_group_count
        elif module.transpose_kernel:
            inner, outer = outer, inner
        module.in_features, module.out_features = inner, outer
    elif isinstance(module, nnx.RNNCellBase):
        reads, carries = ((getattr(module, f"dense_{c}", None) or getattr(module, f"{c}i", None)) for c in "ih")
        if reads is not None and carries is not None:
            cell: Any = module
            cell.in_features, cell.hidden_features = reads.kernel.shape[-2], carries.kernel.shape[-2]
    elif isinstance(module, nnx.Einsum):
        module.kernel_shape = tuple(module.kernel.shape[-len(module.kernel_shape) :])
        if module.bias is not None and module.bias_shape is not None:
            module.bias_shape = tuple(module.bias.shape[-len(module.bias_shape) :])
    elif isinstance(module, nnx.Embed):
        module.num_embeddings, module.features = module.embedding.shape[-2:]
    elif isinstance(module, nnx.LoRA):
        module.in_features, module.out_features = module.lora_a.shape[-2], module.lora_b.shape[-1]
    elif isinstance(module, nnx.BatchNorm | nnx.LayerNorm | nnx.RMSNorm | nnx.InstanceNorm):
        array = _first(module, "scale", "bias", "mean")
        if array is not None:
            module.num_features = array.shape[-1]
    elif isinstance(module, nnx.MultiHeadAttention):
        module.in_features, module.num_heads, module.head_dim = module.query.kernel.shape[-3:]
        module.in_kv_features, module.num_kv_heads, _ = module.key.kernel.shape[-3:]
        module.qkv_features = module.num_heads * module.head_dim
        if isinstance(module.out_features, int):
            module.out_features = module.out.kernel.shape[-1]
        heads = module.num_kv_heads, module.head_dim
        caches: Any = module.cached_key, module.cached_value, module.cache_index
        if caches[0] is not None and caches[0].shape[-2:] != heads:  # its calls did not read it, so it was not cut
            for cache in caches[:2]:
                cache.set_value(jnp.zeros((*cache.shape[:-2], *heads), cache.dtype))
            caches[2].set_value(jnp.zeros_like(caches[2][...]))
