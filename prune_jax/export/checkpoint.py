"""A BERT, by whichever of its names, as the folder of a checkpoint that transformers loads.

The folder holds config.json, model.safetensors and the tokenizer, for AutoModelForSequenceClassification and
AutoTokenizer. Closed weights are exact zeros. A shrunk network has lost the attention heads, the feed-forward columns
and the units of the pooler that are closed as a whole. BertConfig has words for that only where every layer keeps all
its heads and the same number of columns, and the pooler its width. Any other network brings its own model class and
loads with trust_remote_code=True; without it, transformers stops at the sizes. What no config can say, such as a
smaller residual width, stays as zeros, and `shrunk_bert` says why.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.export import hf, shrunk_bert
from prune_jax.export.names import ARCHITECTURES
from prune_jax.models.bert import Bert, BertConfig
from prune_jax.pruning.merge import merge

_CODE = Path(__file__).parent / "modeling_shrunk_bert.py"
_INPUTS = ("input_ids", "token_type_ids", "attention_mask")  # a pair is nothing without its types, where it has some


def describe(
    params: dict, gates: dict, cfg: BertConfig, labels: Sequence[str] = (), shrink: bool = False, padding: int = 0
) -> tuple[dict, dict[str, np.ndarray], list[str]]:
    """What the files of a checkpoint hold: (config.json, the tensors of model.safetensors by name, notes).

    Args:
      params, gates: of the Bert that `cfg` describes, nested dicts of arrays.
      labels: the names of the classes in the order of the outputs; empty for a regression.
      shrink: whether units that are closed as a whole are cut out.
      padding: the id of the tokenizer's padding.
    Returns:
      config.json as a dict, float32 arrays, and a line for each structure of which closed units stay at full width.
    Raises:
      UserError: the architecture has no words for the network.
    """
    model, params, gates = Bert(cfg).opened(params, gates)  # a closed layer is none: BertConfig counts the others
    cfg, params, notes = model.cfg, merge(params, gates), []
    if shrink:
        params, sizes, notes = shrunk_bert.shrink(model, params)
    else:
        params, (heads, columns) = shrunk_bert.with_units(params), model.widths
        sizes = {"layer_heads": heads, "layer_ffn": columns, "pooler_width": params["pooler"]["bias"].size}
    d_ff = sizes["layer_ffn"]
    plain = (
        set(sizes["layer_heads"]) == {cfg.num_heads}
        and len(set(d_ff)) == 1
        and d_ff[0] > 0
        and sizes["pooler_width"] == cfg.d_model
    )
    names = ARCHITECTURES[cfg.architecture or "bert"]
    if not plain and names.base != "bert":
        raise UserError(
            f"transformers has {names.prefix} with layers of one size, and those of this network differ; allowed: an "
            "export without --shrink, or --format=stablehlo"
        )
    if "layer_norm_eps" not in names.keys and cfg.layer_norm_eps != 1e-12:
        raise UserError(f"config.model.layer_norm_eps is {cfg.layer_norm_eps:g}; a {names.prefix} has 1e-12")
    tensors = hf.state_dict(params, names.base, padding)
    sizes_of = dataclasses.asdict(cfg) | {
        "vocab_size": params["token_embedding"]["embedding"].shape[0],
        "max_positions": tensors[hf.tensor_name(("position_embedding", "embedding"), names.base)].shape[0],
        "d_ff": d_ff[0] if plain else cfg.d_ff,
        "embedding_size": cfg.embedding_size or cfg.d_model,
    }
    labels = labels or ("score",)
    config = {
        "architectures": [names.classifier if plain else f"Shrunk{names.classifier}"],
        "model_type": names.base,  # even where it is not quite one, so that AutoTokenizer asks for no trust
        **{theirs: sizes_of[ours] for ours, (theirs, _) in names.keys.items()},
        **dict.fromkeys(names.dropouts, cfg.dropout),
        "pad_token_id": padding,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "regression" if cfg.regression else "single_label_classification",
        "dtype": "float32",
    }
    if not plain:
        config |= {"layer_heads": list(sizes["layer_heads"]), "layer_ffn": list(d_ff)}
        config["pooler_width"] = sizes["pooler_width"]
        config["auto_map"] = {
            "AutoModel": f"{_CODE.stem}.ShrunkBertModel",
            "AutoModelForSequenceClassification": f"{_CODE.stem}.Shrunk{names.classifier}",
        }
    return config, tensors, notes


def write(folder: Path, config: dict, tensors: dict[str, np.ndarray], tokenizer: Path, length: int = 0) -> dict:
    """Fills an existing folder with a checkpoint.

    Args:
      config, tensors: as `describe` makes them.
      tokenizer: the folder with the network's tokenizer.json and tokenizer_config.json.
      length: the tokens that texts were cut to, which whoever asks the network is to cut them to; 0, its positions.
    Returns:
      What config.json holds.
    Raises:
      UserError: there is no tokenizer.
    """
    import safetensors.numpy

    unread = hf.unread_positions(config["model_type"], config["pad_token_id"])
    inputs = _INPUTS if config.get("type_vocab_size", 0) > 1 else (_INPUTS[0], _INPUTS[2])
    most = config["max_position_embeddings"] - unread
    write_tokenizer(folder, tokenizer, min(length or most, most), inputs)
    files.write_json(folder / "config.json", config)
    # save_file would make a file that its owner alone may read
    files.write_bytes(folder / "model.safetensors", safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    if "auto_map" in config:
        shutil.copyfile(_CODE, folder / _CODE.name)
    return config


def _settings(tokenizer: Path) -> dict:
    if not (tokenizer / "tokenizer.json").is_file():
        raise UserError(f"{tokenizer} holds no tokenizer.json; the run's tokenizer is part of what is exported")
    return files.read_json(tokenizer / "tokenizer_config.json")


def padding(tokenizer: Path) -> int:
    """The id of the padding of the tokenizer in a run's folder. UserError if there is none, or it is damaged."""
    pad = _settings(tokenizer).get("pad_token", "[PAD]")
    if not isinstance(pad, str):
        raise UserError(f"{tokenizer / 'tokenizer_config.json'} is damaged: pad_token is {pad!r}; allowed: a text")
    return files.read_tokenizer(tokenizer / "tokenizer.json").token_to_id(pad) or 0


def write_tokenizer(folder: Path, tokenizer: Path, max_length: int, inputs: Sequence[str] = _INPUTS) -> None:
    """Copies a tokenizer into `folder`, and says there how long a text may be, in tokens, and what the network reads.

    Raises:
      UserError: there is no tokenizer.
    """
    settings = _settings(tokenizer) | {"model_max_length": max_length, "model_input_names": [*inputs]}
    shutil.copyfile(tokenizer / "tokenizer.json", folder / "tokenizer.json")
    files.write_json(folder / "tokenizer_config.json", settings)
