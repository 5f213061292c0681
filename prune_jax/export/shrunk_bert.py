"""A pruned BERT made smaller as far as a checkpoint of transformers can say its shape.

The graph of the network's own function tells which units leave no trace. Of these, whole heads, feed-forward columns
and units of the pooler are cut: config.json counts them. The others stay as zeros, and `notes` says so:

- A channel of the residual width. transformers' LayerNorm divides by hidden_size, the gated network by the full width:
  at a smaller hidden_size it would compute other means and variances.
- A part of a head's depth. In transformers every head is hidden_size / num_attention_heads wide.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from prune_jax.graph.graph import Graph
from prune_jax.models import units
from prune_jax.models.bert import HEADS, Bert
from prune_jax.pruning import trees
from prune_jax.pruning.structure import Group

Tree = dict

_CUT = ("head", "ffn", "pooler")  # kinds of groups, whose sizes config.json can say
_WHY = {  # other kinds
    "hidden": "a LayerNorm of transformers divides by hidden_size, and would compute something else at a smaller one",
    "depth": "every head of transformers is hidden_size / num_attention_heads wide",
}


class Shrunk(NamedTuple):
    """A smaller network.

    Attributes:
      params: what lost all its units has kernels without an element.
      sizes: BertConfig's layer_heads, layer_ffn and pooler_width by name.
      notes: a line for each structure of which closed units stay at full width, and why.
    """

    params: Tree
    sizes: dict[str, Any]
    notes: list[str]


def head_name(tree: Tree) -> str:
    """Which of HEADS a network has, by its params or gates."""
    return next(name for name in HEADS if name in tree)


def with_units(params: Tree) -> Tree:
    """params with kernels of size 0 where a layer has lost all its heads or columns already, the network its pooler."""
    small, head = dict(params), head_name(params)
    if "pooler" not in params:
        d_model, labels = params["embedding_norm"]["bias"].size, params[head]["bias"].size
        small["pooler"] = {"kernel": np.zeros((d_model, 0), np.float32), "bias": np.zeros(0, np.float32)}
        small[head] = {"kernel": np.zeros((0, labels), np.float32), **params[head]}
    for name in (name for name in params if name.startswith("layer_")):
        layer, d_model = dict(params[name]), params[name]["attention_norm"]["bias"].size
        for inner, outer in ((("query", "key", "value"), "attention_output"), (("ffn_hidden",), "ffn_output")):
            if "kernel" in layer[outer]:
                continue
            layer[outer] = {"kernel": np.zeros((0, d_model), np.float32), **layer[outer]}
            for module in inner:
                layer[module] = {"kernel": np.zeros((d_model, 0), np.float32), "bias": np.zeros(0, np.float32)}
        small[name] = layer
    return small


def shrink(model: Bert, params: Tree) -> Shrunk:
    """Cuts out the heads, the feed-forward columns and the pooler units of a Bert that leave no trace.

    A unit leaves none when every weight that leads out of it is 0: what it computes is then multiplied by 0, whatever
    its own weights and biases are. What is closed at its inputs alone, a column that is now the constant
    activation(bias), stays.

    Args:
      model: of no closable layers; params: its weights, merged with its gates.
    """
    graph = units.trace(model)
    gone = graph.dropped(params, jax.tree.map(lambda leaf: np.asarray(leaf) != 0, params))
    named, cut, lost, ended = trees.by_name(params), {}, set(), set()  # ended: kernels of which all units are cut
    heads, columns = (list(sizes) for sizes in model.widths)
    pooler = params["pooler"]["bias"].size if "pooler" in params else 0
    for group in units.groups(model):
        if group.kind not in _CUT:
            continue
        reader = next(member.name for member in group.members if member.axis == 0)
        if group.size == 1:  # an axis of size 1 is none in the graph, nor are heads where there is one
            drop = np.asarray([not np.any(named[reader])])
            lost |= {reader} if drop[0] else set()
        else:
            source = _source(graph, group)
            drop = cut[source] = gone[source]
        if drop.all():
            ended |= {member.name for member in group.members}
        if group.kind == "pooler":
            pooler -= int(drop.sum())
        else:
            sizes = heads if group.kind == "head" else columns
            sizes[int(group.name.split(".")[0].removeprefix("layer_"))] -= int(drop.sum())
    evaluation, _ = graph.evaluation(graph.example_inputs, cut)
    taken = (evaluation.take(leaf, axes) for leaf, axes in zip(named.values(), graph.param_axes, strict=True))
    small = dict(zip(named, taken, strict=True))
    left = trees.nested({name: leaf for name, leaf in small.items() if name not in lost}, "/")
    if not pooler:
        left.pop("pooler", None)
    sizes_of = {"layer_heads": tuple(heads), "layer_ffn": tuple(columns), "pooler_width": pooler}
    return Shrunk(with_units(left), sizes_of, list(_notes(graph, gone, cut, ended)))


def _kernels(graph: Graph, name: str) -> list[Any]:
    return [member for member in graph.groups[name].members if member.name in graph.kernels]


def _source(graph: Graph, group: Group) -> str:
    """The name in the graph of a model's group."""
    runs = {(member.name, member.axis) for member in group.members}
    for name, own in graph.groups.items():
        if own.kind != "depth" and own.prunable and {(m.name, m.axis) for m in _kernels(graph, name)} <= runs:
            return name
    raise KeyError(group.name)


def _notes(graph: Graph, gone: dict[str, np.ndarray], cut: dict[str, np.ndarray], ended: set[str]) -> Iterable[str]:
    counts: dict[str, list[int]] = {}
    for name, drop in gone.items():
        kept = drop & ~cut.get(name, np.zeros_like(drop))
        if kept.any() and not {member.name for member in _kernels(graph, name)} <= ended:
            word = "hidden" if graph.groups[name].kind == "hidden" else "depth"
            counts.setdefault(word, []).append(int(kept.sum()))
    for word, numbers in counts.items():
        where = "" if len(numbers) == 1 else f" in {len(numbers)} groups"
        yield f"{word}: {sum(numbers)} closed units{where} stay at full width, as zeros: {_WHY[word]}"
