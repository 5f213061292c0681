"""Three small networks for images of one channel, every kernel gated, relu between the layers.

LeNet-300-100 (LeCun et al., 1998) and LeNet-5 in the form of Caffe's example, both as the compression papers use them,
and the network of the tutorial of soft weight-sharing (Ullrich, Meeds and Welling, 2017, arXiv:1702.04008): on 28x28
they have 266,610, 431,080 and 642,460 parameters.

Convolutions are "valid", as published. Images too small for that (the 8x8 digits) are padded to keep their size.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from prune_jax.errors import UserError
from prune_jax.models.functional import classification_losses
from prune_jax.models.gated import GatedConv, GatedDense
from prune_jax.pruning.plan import Layers
from prune_jax.pruning.structure import Group

_init = nn.initializers.glorot_uniform()


class Conv(NamedTuple):
    """A convolution of size x size filters, then a max-pool over pool x pool."""

    features: int
    size: int
    stride: int = 1
    pool: int = 1

    def output(self, length: int) -> int:
        """What is left of an image's side without padding."""
        return ((length - self.size) // self.stride + 1) // self.pool


class Geometry(NamedTuple):
    convs: tuple[Conv, ...]
    hidden: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each convolution, then the units of each hidden layer."""
        return (*(conv.features for conv in self.convs), *self.hidden)

    def narrowed(self, widths: tuple[int, ...]) -> "Geometry":
        """The same with these widths."""
        count = len(self.convs)
        convs = tuple(conv._replace(features=n) for conv, n in zip(self.convs, widths[:count], strict=True))
        return Geometry(convs, tuple(widths[count:]))


GEOMETRIES = {
    "lenet_300_100": Geometry((), (300, 100)),
    "lenet5_caffe": Geometry((Conv(20, 5, pool=2), Conv(50, 5, pool=2)), (500,)),
    "tutorial": Geometry((Conv(25, 5, stride=2), Conv(50, 3, stride=2)), (500,)),
}


def max_pool(x: jax.Array, size: int) -> jax.Array:
    """The largest of every size x size pixels: (batch, h, w, c) to (batch, h // size, w // size, c).

    As a maximum over axes: the gradient of nn.max_pool's window costs a CPU a third of LeNet-5's training step.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size]
    return jnp.max(x.reshape(batch, rows, size, columns, size, channels), axis=(2, 4))


class LeNet(nn.Module):
    """Images to logits.

    Args of __call__:
      image: (batch, height, width, 1) float32.
      deterministic: of no effect, there is no dropout.
    Returns:
      float32 logits (batch, num_labels).
    """

    geometry: Geometry
    shape: tuple[int, int, int]
    num_labels: int
    dtype: Any = jnp.float32

    inputs = ("image",)  # of a batch, in the order of __call__
    head = "classifier"
    kinds = {"channels": "channel", "columns": "hidden"}  # noqa: RUF012 - of the graph, and as saved runs call them

    @property
    def layers(self) -> Layers:
        """One type per layer, the head last."""
        return Layers(last=(self.head,))

    def in_body(self, name: str) -> bool:
        """Whether a kernel is not the head's."""
        return name.split("/")[0] != self.head

    def named(self, found: tuple[Group, ...], shapes: dict[str, tuple[int, ...]]) -> tuple[Group, ...]:
        """The channels of each convolution and the units of each hidden layer, by the names that saved runs have."""
        order = sorted(found, key=lambda group: group.name)
        return tuple(group._replace(kind=self.kinds[group.kind]) for group in order)

    def sizes(self, params: dict) -> dict[str, tuple[int, ...]]:
        """The keys of config.model that describe the network by its params, where units have been cut out."""
        layers = [f"{word}_{i}" for word in ("conv", "dense") for i in range(1, 1 + len(params))]
        widths = tuple(int(params[name]["bias"].size) for name in layers if name in params)
        return {"widths": widths} if widths != self.geometry.widths else {}

    def losses(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        """(batch,) float32: the cross-entropy in nats."""
        return classification_losses(outputs, batch["labels"])

    def example_inputs(self) -> tuple[jax.Array, ...]:
        """Arguments of __call__ of the least size, to initialise with."""
        return (jnp.zeros((1, *self.shape), jnp.float32),)

    @property
    def padding(self) -> str:
        """VALID, or SAME where the image is smaller than valid convolutions take."""
        side = min(self.shape[:2])
        for conv in self.geometry.convs:
            side = conv.output(side)
        return "VALID" if side > 0 else "SAME"

    @nn.compact
    def __call__(self, image: jax.Array, deterministic: bool = True) -> jax.Array:
        x = image
        for i, conv in enumerate(self.geometry.convs, 1):
            size, strides = (conv.size,) * 2, (conv.stride,) * 2
            layer = GatedConv(conv.features, size, strides, self.padding, self.dtype, _init, name=f"conv_{i}")
            x = jax.nn.relu(layer(x))
            if conv.pool > 1:
                x = max_pool(x, conv.pool)
        x = x.reshape(x.shape[0], -1)
        for i, features in enumerate(self.geometry.hidden, 1):
            x = jax.nn.relu(GatedDense(features, self.dtype, _init, name=f"dense_{i}")(x))
        return GatedDense(self.num_labels, self.dtype, _init, name="classifier")(x).astype(jnp.float32)


def create(config, task, vocab_size: None) -> LeNet:
    """The network that a resolved config names, for the task's images."""
    geometry, widths = GEOMETRIES[config.model.name], config.model.widths
    if widths is not None:
        most = geometry.widths
        whole = len(widths) == len(most) and all(type(n) is int for n in widths)
        if not whole or not all(0 < n <= m for n, m in zip(widths, most, strict=True)):
            raise UserError(
                f"config.model.widths is {tuple(widths)}; allowed: {len(most)} whole numbers from 1 to "
                f"{', '.join(map(str, most))}, one per layer of {config.model.name} but the last"
            )
        geometry = geometry.narrowed(tuple(widths))
    return LeNet(geometry, task.shape, task.num_labels, jnp.dtype(config.model.dtype))
