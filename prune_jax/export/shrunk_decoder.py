"""A pruned decoder made smaller as far as a checkpoint of transformers can say its shape.

config.json has one number of heads, of feed-forward columns and one residual width for all layers. So each layer keeps
as many units as the one that has the most left, closed ones among them where it has fewer. A layer that adds nothing
is left out.

An RMSNorm of transformers divides by hidden_size, the gated network by the full width. With c of f channels left, and
the others 0, x / sqrt(sum x^2 / f + eps) = sqrt(f / c) * x / sqrt(sum x^2 / c + eps * f / c): the factor goes into the
scale, and eps grows.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from prune_jax.graph.graph import Graph
from prune_jax.models import units
from prune_jax.models.decoder import Decoder, DecoderConfig
from prune_jax.pruning import trees

Tree = dict

_WHY = (
    "transformers has one size for all layers",
    "a Llama of transformers has a hidden_size that its heads divide",
)  # whether it is the residual
_KINDS = ("head", "query_head", "ffn", "hidden")


class Shrunk(NamedTuple):
    """A smaller network: its geometry, its params, and a line for each kind of closed units that stay, and why."""

    cfg: DecoderConfig
    params: Tree
    notes: list[str]


def loads(cfg: DecoderConfig, name: str) -> bool:
    """Whether transformers takes these heads and this width: its Llama wants a hidden_size that the heads divide."""
    return name != "LlamaForCausalLM" or cfg.d_model % cfg.num_heads == 0


def shrink(model: Decoder, params: Tree, name: str) -> Shrunk:
    """Cuts out the layers, heads, feed-forward columns and channels of the residual that leave no trace.

    What is computed stays the same, up to the order of additions.

    Args:
      params: the weights, merged with the gates, as NumPy arrays; name: the architecture in transformers.
    """
    model, params = _without_idle_layers(model, params)
    cfg, graph = model.cfg, units.trace(model)
    gone = graph.dropped(params, jax.tree.map(lambda leaf: np.asarray(leaf) != 0, params))
    groups = _groups(model, graph)
    full = {"head": cfg.num_kv_heads, "query_head": cfg.num_heads // cfg.num_kv_heads, "ffn": cfg.d_ff,
            "hidden": cfg.d_model}  # fmt: skip
    left = {k: max([1, *(int(np.sum(~gone[g])) for g in groups[k])]) if groups[k] else full[k] for k in _KINDS}
    if loads(cfg, name):
        left = _loadable(cfg, left, full, name)
    cut = {g: _first(gone[g], full[kind] - left[kind]) for kind in _KINDS for g in groups[kind]}
    evaluation, _ = graph.evaluation(graph.example_inputs, cut)
    leaves, factor = trees.by_name(params), full["hidden"] / left["hidden"]
    small = {}
    for (path, leaf), axes in zip(leaves.items(), graph.param_axes, strict=True):
        taken = np.asarray(evaluation.take(leaf, axes))
        small[path] = taken * np.float32(factor**0.5) if path.endswith("norm/scale") else taken
    cfg = dataclasses.replace(
        cfg,
        num_kv_heads=left["head"],
        num_heads=left["head"] * left["query_head"],
        d_ff=left["ffn"],
        d_model=left["hidden"],
        norm_eps=cfg.norm_eps * factor,
    )
    return Shrunk(cfg, trees.nested(small, "/"), list(_notes(graph, gone, cut, groups)))


def _without_idle_layers(model: Decoder, params: Tree) -> tuple[Decoder, Tree]:
    """A decoder without the layers that add nothing to the residual; the first stays where all are such."""
    names = [f"layer_{i}" for i in range(model.cfg.num_layers)]
    adds = [any(np.any(leaf) for part in ("attention_output", "ffn_output") for leaf in params[name][part].values())
            for name in names]  # fmt: skip
    kept = [name for name, does in zip(names, adds, strict=True) if does] or names[:1]
    small = {name: tree for name, tree in params.items() if name not in names}
    small |= {f"layer_{i}": params[name] for i, name in enumerate(kept)}
    return Decoder(dataclasses.replace(model.cfg, num_layers=len(kept), dtype=np.float32)), small


def _groups(model: Decoder, graph: Graph) -> dict[str, list[str]]:
    """The graph's groups of each kind by name: one per layer, and one of the residual. Of an axis of size 1, none."""
    shapes = {name: leaf.shape for name, leaf in trees.by_name(graph.shapes).items()}
    found: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for name, group in graph.groups.items():
        if group.prunable:
            for named in model.named((group,), shapes):
                found[named.kind].append(name)
    return found


def _loadable(cfg: DecoderConfig, left: dict[str, int], full: dict[str, int], name: str) -> dict[str, int]:
    """The smallest sizes that transformers loads, from those that are left to the full ones, which it does."""
    found = []
    ranges = (range(left[kind], full[kind] + 1) for kind in ("head", "query_head"))
    for kv, queries in itertools.product(*ranges):
        for width in range(left["hidden"], full["hidden"] + 1):
            if loads(dataclasses.replace(cfg, d_model=width, num_heads=kv * queries), name):
                weights = width * (2 * kv * (queries + 1) * cfg.head_dim + 3 * left["ffn"])
                found.append((weights, left | {"head": kv, "query_head": queries, "hidden": width}))
                break
    return min(found, key=lambda one: one[0])[1]


def _first(gone: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of the units that are gone, as booleans."""
    drop = np.zeros_like(gone)
    drop[np.flatnonzero(gone)[:count]] = True
    return drop


def _notes(
    graph: Graph, gone: dict[str, np.ndarray], cut: dict[str, np.ndarray], groups: dict[str, list[str]]
) -> Iterator[str]:
    for kind, names in groups.items():
        if stay := sum(int(np.sum(gone[name] & ~cut[name])) for name in names):
            yield f"{kind}: {stay} closed units stay, as zeros: {_WHY[kind == 'hidden']}"
    depths = [name for name, group in graph.groups.items() if group.kind == "depth" and name in gone]
    if stay := sum(int(gone[name].sum()) for name in depths):
        yield f"depth: {stay} closed units stay, as zeros: every head of transformers is head_dim wide"
