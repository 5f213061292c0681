"""How a run's arrays lie on its devices: config.mesh, and the shardings that follow from it.

The devices form a mesh of three axes. The rows of a batch are split over `data` and `fsdp`. A weight, and every array
of its name (its gate, its moments, a method's scores of it), is split over `tensor` as its model says, by whole heads
or columns, and along its longest other axis over `fsdp`. What has one axis, or none that divides, is whole on each
device. The parts of a weight over `fsdp` are put together where the network uses it, and its gradient is split again.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prune_jax.errors import UserError
from prune_jax.pruning import packed, trees
from prune_jax.run import processes

Tree = Any

AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))


def sizes(given: Mapping[str, int], devices: int) -> dict[str, int]:
    """The devices along each axis, with the rest in the place of -1.

    Raises:
      UserError: the axes do not make up the devices.
    Example:
      >>> sizes({"data": -1, "fsdp": 4, "tensor": 1}, 8)
      {'data': 2, 'fsdp': 4, 'tensor': 1}
    """
    known = math.prod(given[axis] for axis in AXES if given[axis] != -1)
    rest = devices // known
    filled = {axis: rest if given[axis] == -1 else given[axis] for axis in AXES}
    if math.prod(filled.values()) != devices:
        shown = ", ".join(f"{axis}={given[axis]}" for axis in AXES)
        open_ = [axis for axis in AXES if given[axis] == -1]
        allowed = f"axes whose product divides {devices}" if open_ else f"axes whose product is {devices}"
        raise UserError(f"config.mesh is {shown}; allowed: {allowed}, the devices that there are")
    return filled


class Layout(NamedTuple):
    """The mesh of a run, and where its arrays lie on it."""

    mesh: Mesh

    @property
    def whole(self) -> NamedSharding:
        """Of what each device has a copy of."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """Of a batch."""
        return NamedSharding(self.mesh, ROWS)

    def of(self, tree: Tree, model: Any, params: Tree, gathered: bool = False) -> Tree:
        """The sharding of each leaf of a tree.

        Args:
          tree: of a network, or a TrainState; arrays or their shapes.
          model: the network; params: its params or their shapes. A leaf belongs to the weight whose name its own ends
            in and whose shape it has.
          gathered: whether fsdp splits nothing.
        """
        shapes = {name: leaf.shape for name, leaf in trees.by_name(params).items()}

        def at(path: tuple, leaf: Any) -> NamedSharding:
            parts = trees.name(path).split("/")
            own = next((n for i in range(len(parts)) if (n := "/".join(parts[i:])) in shapes), None)
            split = model.split(own) if own and shapes[own] == leaf.shape and hasattr(model, "split") else None
            spec = self._spec(leaf.shape, split, 1 if gathered else self.mesh.shape["fsdp"])
            where = NamedSharding(self.mesh, spec)
            if not packed.is_packed(leaf):
                return where
            return dataclasses.replace(leaf, words=packed.sharding(where, leaf.words.shape))

        return jax.tree_util.tree_map_with_path(at, tree, is_leaf=packed.is_packed)

    def gather(self, model: Any, params: Tree) -> Callable[[Tree], Tree] | None:
        """A function for use inside jit: params as they are used, whole over fsdp, whose gradients are split over it.

        None where fsdp is 1.
        """
        if self.mesh.shape["fsdp"] == 1:
            return None
        whole, parts = (self.of(params, model, params, gathered) for gathered in (True, False))

        def gathered(params: Tree) -> Tree:
            # A constraint is one of the gradient, too: first summed as if whole, then split, which is a reduce-scatter.
            return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(params, parts), whole)

        return gathered

    def put(self, variables: Tree, model: Any) -> Tree:
        """The variables of a network that is not trained, {"params": .., "gates": ..}, whole over fsdp."""
        return processes.put(variables, self.of(variables, model, variables["params"], gathered=True))

    def _spec(self, shape: tuple[int, ...], split: tuple[int, int] | None, fsdp: int) -> PartitionSpec:
        """split: (the axis that tensor splits, the units along it)."""
        tensor = self.mesh.shape["tensor"]
        axes: list[str | None] = [None] * len(shape)
        if split and tensor > 1 and split[1] % tensor == 0:
            axes[split[0]] = "tensor"
        if fsdp > 1 and len(shape) > 1:
            free = [i for i, size in enumerate(shape) if axes[i] is None and size and size % fsdp == 0]
            if free:
                axes[max(free, key=lambda i: shape[i])] = "fsdp"
        while axes and axes[-1] is None:  # P(None) and P() place alike, but are not equal
            axes.pop()
        return PartitionSpec(*axes)


def create(config: Any) -> Layout:
    """The layout of a resolved config on all devices.

    Raises:
      UserError: the mesh does not fit the devices, or the batch does not fit the mesh.
    """
    devices, parts = jax.devices(), config.train.accumulate
    size = sizes(config.mesh, len(devices))
    by = size["data"] * size["fsdp"]
    if config.train.batch_size % (by * parts):
        also = f" and config.train.accumulate={parts}" if parts > 1 else ""
        where = (
            f"{len(devices)} devices" if by == len(devices) else f"a mesh of data={size['data']}, fsdp={size['fsdp']}"
        )
        raise UserError(
            f"config.train.batch_size is {config.train.batch_size}; on {where}{also} it must be a multiple of "
            f"{by * parts}"
        )
    return Layout(jax.make_mesh(tuple(size.values()), AXES, (jax.sharding.AxisType.Auto,) * 3, devices=devices))


def check_model(layout: Layout, model: Any, name: str) -> None:
    """UserError for a tensor axis that splits no weight of the model."""
    tensor = layout.mesh.shape["tensor"]
    if tensor == 1:
        return
    if not hasattr(model, "split"):
        raise UserError(f"config.mesh.tensor is {tensor}; allowed: 1 with config.model.name={name}")
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["params"]
    units = [split[1] for leaf in trees.by_name(shapes) if (split := model.split(leaf))]
    if wrong := sorted({n for n in units if n % tensor}):
        raise UserError(
            f"config.mesh.tensor is {tensor}; allowed: a divisor of the heads and feed-forward columns of every layer "
            f"({', '.join(map(str, wrong))})"
        )


def line(layout: Layout, state: Tree) -> list[str]:
    """What the log says of the layout of a state: the mesh, and the bytes per device; nothing on one device.

    Args:
      state: shapes with shardings, or arrays.
    """
    size = layout.mesh.shape
    if layout.mesh.size == 1:
        return []

    def total(shape_of) -> int:
        return sum(math.prod(shape_of(leaf)) * np.dtype(leaf.dtype).itemsize for leaf in leaves)

    leaves = [x for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]
    own, all_of_it = total(lambda x: x.sharding.shard_shape(x.shape)), total(lambda x: x.shape)
    axes = ", ".join(f"{axis} {size[axis]}" for axis in AXES)
    return [f"mesh      {axes}; each device holds {own / 1e6:,.1f} of the state's {all_of_it / 1e6:,.1f} MB"]
