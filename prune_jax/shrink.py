"""A pruned network made smaller: heads, feed-forward columns and pooler units that nothing reads any more are cut out.

A unit is gone when every weight that leads out of it, its rows of attention_output, ffn_output or the network's head,
is 0. What it computes is then multiplied by 0, whatever its own weights and biases are: a query or key bias decides
only where a head looks, a value bias and activation(bias) of a column meet the zero rows. So the smaller network
computes the same function, up to the order of float additions. What was closed at its inputs alone (a column that is
now the constant activation(bias)) stays.
"""

from typing import Any

import numpy as np

from prune_jax.gates import head_name

Tree = dict


def merge(params: Tree, gates: Tree) -> Tree:
    """params with +0.0 where a gate is closed, as a new tree of NumPy arrays: the network that is computed."""

    def zero(own: Tree, gate: Tree) -> Tree:
        return {
            name: zero(leaf, gate.get(name, {}))
            if isinstance(leaf, dict)
            else np.where(gate[name], leaf, 0)
            if name in gate
            else np.asarray(leaf)
            for name, leaf in own.items()
        }

    return zero(params, gates)


def _dense(layer: Tree, name: str, columns: np.ndarray | None = None, rows: np.ndarray | None = None) -> Tree:
    kernel, bias = layer[name]["kernel"], layer[name]["bias"]
    if rows is not None:
        return {"kernel": kernel[rows], "bias": bias}
    return {"kernel": kernel[:, columns], "bias": bias[columns]}


def with_units(params: Tree) -> Tree:
    """params with kernels of size 0 where a layer has lost all its heads or columns already, the network its pooler."""
    found, head = dict(params), head_name(params)
    if "pooler" not in params:
        d_model, labels = params["embedding_norm"]["bias"].size, params[head]["bias"].size
        found["pooler"] = {"kernel": np.zeros((d_model, 0), np.float32), "bias": np.zeros(0, np.float32)}
        found[head] = {"kernel": np.zeros((0, labels), np.float32), **params[head]}
    for name in (name for name in params if name.startswith("layer_")):
        layer, d_model = dict(params[name]), params[name]["attention_norm"]["bias"].size
        for inner, outer in ((("query", "key", "value"), "attention_output"), (("ffn_hidden",), "ffn_output")):
            if "kernel" in layer[outer]:
                continue
            layer[outer] = {"kernel": np.zeros((0, d_model), np.float32), **layer[outer]}
            for module in inner:
                layer[module] = {"kernel": np.zeros((d_model, 0), np.float32), "bias": np.zeros(0, np.float32)}
        found[name] = layer
    return found


def shrink(params: Tree, depth: int) -> tuple[Tree, dict[str, Any]]:
    """Cuts out the heads, the feed-forward columns and the pooler units of a Bert that no weight leads out of.

    Args:
      params: merged with the gates; each layer and the pooler with kernels, if only of size 0.
      depth: the width of a head.
    Returns:
      (params, BertConfig's layer_heads, layer_ffn and pooler_width by name). What lost all its units has kernels
      without an element.
    """
    found, layer_heads, layer_ffn = dict(params), [], []
    for i in range(sum(name.startswith("layer_") for name in params)):
        layer = params[f"layer_{i}"]
        leaving = layer["attention_output"]["kernel"].reshape(-1, depth, layer["attention_output"]["bias"].size)
        heads = np.any(leaving, axis=(1, 2))
        units, columns = np.repeat(heads, depth), np.any(layer["ffn_output"]["kernel"], axis=1)
        found[f"layer_{i}"] = {
            **layer,
            **{name: _dense(layer, name, units) for name in ("query", "key", "value")},
            "attention_output": _dense(layer, "attention_output", rows=units),
            "ffn_hidden": _dense(layer, "ffn_hidden", columns),
            "ffn_output": _dense(layer, "ffn_output", rows=columns),
        }
        layer_heads.append(int(heads.sum()))
        layer_ffn.append(int(columns.sum()))
    head = head_name(params)
    units = np.any(params[head]["kernel"], axis=1)
    found |= {"pooler": _dense(params, "pooler", units), head: _dense(params, head, rows=units)}
    sizes = {"layer_heads": tuple(layer_heads), "layer_ffn": tuple(layer_ffn), "pooler_width": int(units.sum())}
    return found, sizes
