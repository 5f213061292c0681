"""A run's network as a checkpoint that transformers loads, or as a StableHLO file.

    python -m prune_jax.export RUN_DIR OUT_DIR [--format=hf|stablehlo] [--kind=best|last] [--shrink] [--int8]
        [--length N [N ...]] [--force]

With --format=stablehlo OUT_DIR holds what prune_jax.stablehlo says, and the tokenizer; `load` reads it back. With hf
OUT_DIR then holds config.json, model.safetensors and the tokenizer, for AutoModelForSequenceClassification and
AutoTokenizer; closed weights are exact zeros. With --shrink, attention heads, feed-forward columns and units of the
pooler that are closed as a whole are cut out. BertConfig can say so only where every layer keeps all its heads and the
same number of columns, and the pooler its width; any other export has its own model class in OUT_DIR and loads with
trust_remote_code=True (without, transformers stops at the sizes). config.model.init_from loads both.
"""

import argparse
import functools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from prune_jax import command, runs, stablehlo
from prune_jax import shrink as shrink_lib
from prune_jax import workdir as workdir_lib
from prune_jax.data.glue import get_task
from prune_jax.errors import UserError
from prune_jax.models import hf
from prune_jax.stablehlo import load

__all__ = ["checkpoint", "export", "load"]

_FILES = {"hf": ("config.json", "model.safetensors"), "stablehlo": (stablehlo.SIDECAR, "model*.stablehlo")}
_CODE = Path(__file__).parent / "models" / "modeling_shrunk_bert.py"


def checkpoint(network: runs.Network, shrink: bool = False) -> tuple[dict, dict[str, np.ndarray]]:
    """(config.json, tensors by name) of a run's network."""
    config, model = network.config, network.config.model
    if "token_embedding" not in network.params:
        raise UserError("only a BERT can be exported to transformers; this run's network is none")
    task = get_task(config.data.task, config.data.source)
    depth = model.d_model // model.num_heads
    params = shrink_lib.with_units(shrink_lib.merge(network.params, network.gates))
    sizes = {
        "layer_heads": model.get("layer_heads") or (model.num_heads,) * model.num_layers,
        "layer_ffn": model.get("layer_ffn") or (model.d_ff,) * model.num_layers,
        "pooler_width": params["pooler"]["bias"].size,
    }
    if shrink:
        params, sizes = shrink_lib.shrink(params, depth)
    d_ff = sizes["layer_ffn"]
    plain = (
        set(sizes["layer_heads"]) == {model.num_heads}
        and len(set(d_ff)) == 1
        and d_ff[0] > 0
        and sizes["pooler_width"] == model.d_model
    )
    name = "BertForSequenceClassification"
    labels = task.labels or ("score",)
    found = {
        "architectures": [name if plain else f"Shrunk{name}"],
        "model_type": "bert",  # even where it is not quite one, so that AutoTokenizer asks for no trust
        "vocab_size": params["token_embedding"]["embedding"].shape[0],
        "max_position_embeddings": params["position_embedding"]["embedding"].shape[0],
        "type_vocab_size": params["type_embedding"]["embedding"].shape[0],
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": d_ff[0] if plain else model.d_ff,
        "hidden_act": model.get("activation") or "gelu",  # runs from before there was a choice
        "layer_norm_eps": model.get("layer_norm_eps") or 1e-12,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "regression" if task.is_regression else "single_label_classification",
        "dtype": "float32",
    }
    if not plain:
        found |= {"layer_heads": list(sizes["layer_heads"]), "layer_ffn": list(d_ff)}
        found["pooler_width"] = sizes["pooler_width"]
        found["auto_map"] = {
            "AutoModel": f"{_CODE.stem}.ShrunkBertModel",
            "AutoModelForSequenceClassification": f"{_CODE.stem}.Shrunk{name}",
        }
    return found, hf.state_dict(params)


def _check_target(run: Path, target: Path, files: tuple[str, ...], force: bool) -> None:
    if target == run or target in run.parents:
        raise UserError(f"{target} is or holds the run itself; choose another folder")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; choose a folder")
    if target.is_dir() and any(target.iterdir()):
        if not force:
            raise UserError(f"{target} is not empty; choose another folder, or --force to replace an earlier export")
        if not all(any(target.glob(name)) for name in files):
            raise UserError(f"{target} is not an earlier export ({', '.join(files)}): it is left as it is")


def _write_tokenizer(run: Path, folder: Path, max_positions: int) -> int:
    """Copies the run's tokenizer, and says how long a text may be. Returns the id of its padding."""
    saved = run / "tokenizer"
    if not (saved / "tokenizer.json").is_file():
        raise UserError(f"{saved} holds no tokenizer.json; the run's tokenizer is part of what is exported")
    shutil.copyfile(saved / "tokenizer.json", folder / "tokenizer.json")
    settings = workdir_lib.read_json(saved / "tokenizer_config.json") | {
        "model_max_length": max_positions,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],  # a pair is nothing without its types
    }
    workdir_lib.write_json(folder / "tokenizer_config.json", settings)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return backend.token_to_id(settings.get("pad_token", "[PAD]")) or 0


def _fill_hf(run: Path, config_json: dict, tensors: dict[str, np.ndarray], folder: Path) -> dict:
    import safetensors.numpy

    config_json["pad_token_id"] = _write_tokenizer(run, folder, config_json["max_position_embeddings"])
    workdir_lib.write_json(folder / "config.json", config_json)
    # save_file would make a file that its owner alone may read
    workdir_lib.write_bytes(folder / "model.safetensors", safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    if "auto_map" in config_json:
        shutil.copyfile(_CODE, folder / _CODE.name)
    return config_json


def _fill_stablehlo(run: Path, write: Callable[[Path], dict], folder: Path) -> dict:
    written = write(folder)
    if written["max_length"]:
        _write_tokenizer(run, folder, written["max_length"])
    return written


def export(
    run,
    target,
    kind: str = "best",
    shrink: bool = False,
    force: bool = False,
    form: str = "hf",
    int8: bool = False,
    lengths: Sequence[int] = (),
) -> dict:
    """Writes the network of the run in `run` to the folder `target`, whole or not at all.

    Returns its config.json or, where form is "stablehlo" in place of "hf", its model.json.

    Raises:
      UserError: there is no such run or checkpoint, or target holds something that is not an earlier export.
    """
    run, target = Path(os.path.realpath(run)), Path(os.path.realpath(target))
    network = runs.load(run, kind)
    _check_target(run, target, _FILES[form], force)
    if form == "hf":
        fill = functools.partial(_fill_hf, run, *checkpoint(network, shrink))
    else:
        write = functools.partial(stablehlo.write, network, int8=int8, shrink=shrink, lengths=lengths)
        fill = functools.partial(_fill_stablehlo, run, write)
    with workdir_lib.write_folder(target, replace=True) as folder:
        return fill(folder)


def _main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m prune_jax.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN_DIR")
    parser.add_argument("target", metavar="OUT_DIR")
    parser.add_argument("--format", choices=tuple(_FILES), default="hf")
    parser.add_argument("--kind", choices=("best", "last"), default="best", help="which checkpoint of the run")
    parser.add_argument("--shrink", action="store_true", help="cut out heads, columns and pooler units that are closed")
    parser.add_argument("--int8", action="store_true", help="stablehlo: 8 bits a weight, a scale an output channel")
    parser.add_argument("--length", type=int, nargs="+", default=(), metavar="N", help="stablehlo: one file a length")
    parser.add_argument("--force", action="store_true", help="replace an earlier export in OUT_DIR")
    args = parser.parse_args(argv)
    if args.int8 and args.format == "hf":
        raise UserError("--int8 needs --format=stablehlo: a BERT of transformers has no 8-bit weights")
    if args.length and args.format == "hf":
        raise UserError("--length needs --format=stablehlo: a BERT of transformers takes any length")
    written = export(args.run, args.target, args.kind, args.shrink, args.force, args.format, args.int8, args.length)
    if args.format == "stablehlo":
        print(
            f"{args.target}: {written['weights']}, {written['bytes']:,} bytes; largest logit difference "
            f"{written['largest_logit_difference']:.2e} where the largest logit is {written['largest_logit']:.2f}"
        )
        return
    keys = ("layer_heads", "layer_ffn", "pooler_width")
    sizes = "".join(f", {key} {written[key]}" for key in keys if key in written)
    how = "; load it with trust_remote_code=True" if "auto_map" in written else ""
    print(f"{args.target}: {written['architectures'][0]}{sizes}{how}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    return command.run("export", _main, argv)


if __name__ == "__main__":
    sys.exit(main())
