"""What is read of an optimizer's state: gates, sparsity, the masked network, the one that a method leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed, trees
from prune_jax.pruning.method import Method
from prune_jax.pruning.stepping import PruneState, sampling_key

Tree = Any
_ALLOWED = "allowed: an optimizer's state, an nnx.Optimizer, or a gate tree"


def _states_of(tree: Any) -> list[PruneState]:
    """Each PruneState inside an optimizer's state, such as that of optax.chain or of an nnx.Optimizer."""
    tree = getattr(tree, "opt_state", tree)
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, PruneState))
    return [leaf for leaf in leaves if isinstance(leaf, PruneState)]


def _state_of(tree: Any) -> PruneState:
    """The one PruneState inside an optimizer's state."""
    states = _states_of(tree)
    if len(states) != 1:
        raise ValueError(f"there are {len(states)} states of pj.prune in a {type(tree).__name__}; allowed: one")
    return states[0]


def _gates_in(state: Any) -> Tree:
    """The gates of every pruning in an optimizer's state, or the gate tree that was given in its place."""
    if states := _states_of(state):
        every = [packed.unpack(one.gates) for one in states]
        return every[0] if len(every) == 1 else every
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if getattr(leaf, "dtype", None) != jnp.dtype(bool):
            raise TypeError(
                f"a {type(state).__name__} holds no state of pj.prune, and its leaf {trees.name(path)!r} is no gate; "
                f"{_ALLOWED}"
            )
    if isinstance(state, tuple | None) and not jax.tree.leaves(state):  # such as that of optax.sgd
        raise TypeError(f"a {type(state).__name__} holds no state of pj.prune and no gate; {_ALLOWED}")
    return state


def named_gates(state: Any) -> dict[str, jax.Array]:
    """Name of a weight -> its gate, of every pruning in an optimizer's state, or of a gate tree.

    Raises:
      TypeError: the state holds no pruning, and it is no gate tree, such as params.
    """
    trees_of = [packed.unpack(one.gates) for one in _states_of(state)] or [_gates_in(state)]
    return {name: gate for tree in trees_of for name, gate in trees.by_name(tree).items()}


def gates(state: Any) -> Tree:
    """The gates in an optimizer's state, a tree like params: True is open, None has no gate.

    Args:
      state: what `init` or `update` of prune's transformation returned, alone or inside a chain, or an nnx.Optimizer.
    Raises:
      ValueError: there is no pruning in it, or more than one, as optax.multi_transform may have.
    Example:
      >>> import prune_jax as pj
      >>> tx = pj.prune(optax.sgd(0.1), pj.magnitude(), pj.constant(0.5))
      >>> pj.gates(tx.init({"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}))
      {'bias': None, 'kernel': Array([[ True,  True]], dtype=bool)}
    """
    return packed.unpack(_state_of(state).gates)


def sparsity(state: Any) -> jax.Array:
    """() float32: the closed fraction of all gates, inside jit too.

    Args:
      state: as of gates, with one pruning and more; or a gate tree.
    Raises:
      TypeError: the state holds no pruning, and it is no gate tree, such as params.
    Example:
      >>> sparsity({"kernel": jnp.array([[True, False, False, False]]), "bias": None})
      Array(0.75, dtype=float32)
    """
    return gates_lib.share_closed(_gates_in(state))


def layer_sparsity(state: Any) -> dict[str, float]:
    """The closed fraction of each kernel, by the name of its module. Not for use inside jit.

    Args:
      state: as of gates; or a gate tree.
    Raises:
      TypeError: the state holds no pruning, and it is no gate tree, such as params.
    Example:
      >>> layer_sparsity({"dense": {"kernel": jnp.array([[True, False]])}})
      {'dense': 0.5}
    """
    return gates_lib.layer_sparsity(_gates_in(state))


@jax.custom_vjp
def _product(leaf: jax.Array, gate: jax.Array, dense: jax.Array) -> jax.Array:
    """leaf * gate, whose gradient reaches all of leaf where `dense` is True."""
    return leaf * gate.astype(leaf.dtype)


_product.defvjp(
    lambda leaf, gate, dense: (_product(leaf, gate, dense), (gate, dense)),
    lambda known, cotangent: (jnp.where(known[0] | known[1], cotangent, jnp.zeros_like(cotangent)), None, None),
)


def _check_fit(params: Tree, state: Any) -> None:
    """Raises ValueError where a gate of a state has no weight of its name and shape in params."""
    gates_lib.check_fit(named_gates(state), {name: np.shape(leaf) for name, leaf in trees.by_name(params).items()})


def masked(params: Tree, state: Any) -> Tree:
    """params with the weights of closed gates at 0, each kernel times its gate.

    With the state of a method that reopens gates, the gradient passes through to the weights of closed ones, too: the
    method looks at it, and prune's updates leave those weights as they are.

    Args:
      params: a pytree that holds the kernels, such as an nnx or equinox module.
      state: an optimizer's state, as of sparsity; or a gate tree.
    Raises:
      TypeError: the state holds no pruning, and it is no gate tree.
      ValueError: a gate has no weight of its name and shape, such as with params from inside the tree that was pruned.
    Example:
      >>> masked({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])})
      {'w': Array([1., 0.], dtype=float32)}
    """
    states = _states_of(state)
    _check_fit(params, state)
    if not states:
        return gates_lib.masked(params, state)
    known = {
        name: (gate, one.dense) for one in states for name, gate in trees.by_name(packed.unpack(one.gates)).items()
    }

    def product(path: tuple, leaf: Any) -> Any:
        name = trees.name(path)
        return _product(leaf, *known[name]) if name in known else leaf

    return jax.tree_util.tree_map_with_path(product, params)


def sampled(method: Method, params: Tree, state: Any) -> Tree:
    """params as the training step sees them under a method that draws its gates or weights: l0, cofi.

    The loss of a step is taken here; each step has another sample. Its gradient passes straight through to params, and
    prune's update brings it to the weights and to what the method learns. For any other method it is `masked`.

    Args:
      method: that the state is of; params, state: as of masked.
    Raises:
      ValueError: there is no pruning in the state, or one by another method.
    Example:
      >>> import prune_jax as pj
      >>> method = pj.l0()
      >>> tx = pj.prune(optax.sgd(0.1), method, pj.constant(0.5))
      >>> params = {"kernel": jnp.ones((1, 2))}
      >>> state = tx.init(params)
      >>> grads = jax.grad(lambda p: jnp.sum(pj.sampled(method, p, state)["kernel"] ** 2))(params)
    """
    if method.sample is None:
        return masked(params, state)
    pruned = _state_of(state)
    if set(pruned.trainable) != set(method.rates):
        raise ValueError(f"method is {method.name}; allowed: the one that the state is of, as it was given to pj.prune")
    _check_fit(params, pruned)
    opened = packed.unpack(pruned.gates)
    kernels = gates_lib.kernels(params, opened)
    key = sampling_key(pruned.key, pruned.step)
    drawn = method.sample(kernels, opened, pruned.trainable, key, pruned.method)
    # The value is the sample's; the gradient passes straight through.
    through = jax.tree.map(lambda w, s: w + jax.lax.stop_gradient(s - w), kernels, drawn)
    return trees.replaced(params, trees.by_name(through))


def finish(method: Method, params: Tree, state: Any) -> tuple[Tree, Tree]:
    """(params, gates) of the network that a method leaves once training is over, such as soft weight-sharing's.

    Every other method's network is params with the weights of closed gates at 0.

    Args:
      method: that trained; params, state: after the last update.
    Raises:
      TypeError: method is none.
      ValueError: there is no pruning in the state, or one by another method.
    Example:
      >>> import prune_jax as pj
      >>> method = pj.soft_weight_sharing(num_examples=60_000, deviation=0.05)
      >>> params = {"kernel": jnp.array([[0.001, -0.002], [0.6, 0.001]])}
      >>> state = pj.prune(optax.adam(5e-4), method).init(params)
      >>> packed, gates = pj.finish(method, params, state)
      >>> packed["kernel"]
      array([[0. , 0. ],
             [0.6, 0. ]], dtype=float32)
    """
    if not isinstance(method, Method):
        raise TypeError(f"method is a {type(method).__name__}; allowed: a Method, such as soft_weight_sharing(...)")
    pruned = _state_of(state)
    _check_fit(params, pruned)
    opened = packed.unpack(pruned.gates)
    if method.end_run is None:
        return gates_lib.masked(params, opened), opened
    if set(pruned.trainable) != set(method.rates):
        raise ValueError(f"method is {method.name}; allowed: the one that was trained, as it was given to pj.prune")
    new_params, new_gates, _, _ = method.end_run(params, opened, pruned.trainable, pruned.method)
    return new_params, new_gates
