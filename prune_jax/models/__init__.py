"""Networks whose kernels carry gates, and what they say of themselves.

A model has
  __call__(*inputs, deterministic=True) -> (batch, num_labels) float32 outputs, or a decoder's of each token,
  inputs: the names of a batch's entries that it reads, in order, and example_inputs() of the least size,
  losses(outputs, batch) -> (batch,) float32, what training makes small,
  scored(outputs, batch) -> (batch, few) float32, what an evaluation keeps of its outputs, where that is not all,
  head: the name of the module that belongs to the task; HEADS are those that any model has,
  layer_outputs(sown): what its layers sow for a teacher, where they do,
  in_body(name): whether a kernel belongs to the network's body, which pruning.structure=encoder, blocks and n:m cover,
  split(name): the axis of a weight that config.mesh.tensor splits, and its heads or columns, where it has some,
  layers: what its layers are called, and in which order,
  opened(params, gates): the network without what no axis of its graph tells of, its closed layers, where it has some,
  sizes(params): the keys of config.model that say its widths once units are cut out, where a config can say them,
  named(found, shapes): its own names for the groups that the graph of its function finds, where it has some.
Nothing outside this room knows the name of a module. A new model is a new file here and one line of REGISTRY; the file
has create(config, task, vocab_size). Nothing heavy is imported before a name is used.
"""

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from prune_jax.models.bert import HEADS, OPTIONAL, Bert, BertConfig, text_sizes
    from prune_jax.models.gated import GatedConv, GatedDense

__all__ = [
    "HEADS",
    "OPTIONAL",
    "REGISTRY",
    "Bert",
    "BertConfig",
    "Entry",
    "GatedConv",
    "GatedDense",
    "create",
    "text_sizes",
]


class Entry(NamedTuple):
    """A model that a config can name.

    Attributes:
      reads: "text", "images", or "lm", running text whose next tokens it tells.
      module: that has create(config, task, vocab_size).
    """

    reads: str
    module: str


REGISTRY = {  # model.name
    "bert": Entry("text", "prune_jax.models.bert"),
    "decoder": Entry("lm", "prune_jax.models.decoder"),
    "lenet_300_100": Entry("images", "prune_jax.models.lenet"),
    "lenet5_caffe": Entry("images", "prune_jax.models.lenet"),
    "tutorial": Entry("images", "prune_jax.models.lenet"),
}

_HOME = dict.fromkeys(("HEADS", "OPTIONAL", "Bert", "BertConfig", "text_sizes"), "bert") | dict.fromkeys(
    ("GatedConv", "GatedDense"), "gated"
)


def create(config: Any, task: Any, vocab_size: int | None) -> Any:
    """The network that a resolved config and the task's labels describe; vocab_size is None for images."""
    return importlib.import_module(REGISTRY[config.model.name].module).create(config, task, vocab_size)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prune_jax.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prune_jax.models.{_HOME[name]}"), name)
