"""Writes a run's network as a checkpoint that transformers loads, or as StableHLO or ONNX files.

    prune-jax export RUN_DIR OUT_DIR [--kind=KIND] [--format=hf|stablehlo|onnx] [--shrink] [--int8]
        [--length N [N ...]] [--batch=N] [--platform P [P ...]] [--force] [--push-to-hub=USER/NAME [--dry-run]]

With --format=hf OUT_DIR receives config.json, model.safetensors, the tokenizer and a model card, for transformers'
AutoModelForSequenceClassification (which needs torch) and AutoTokenizer, or, without a card, of a decoder for
AutoModelForCausalLM. With --format=stablehlo it receives model.stablehlo, or one file per --length, model.json and the
tokenizer; prune_jax.export.load reads them back. With --format=onnx it receives model.onnx, for texts one file per
--length, model.json and the tokenizer, for ONNX Runtime. Closed weights are exact zeros.

With --shrink, units that are closed as a whole are cut out: attention heads, feed-forward columns and units of the
pooler, and with --format=stablehlo or onnx the residual width and a LeNet's channels and columns, too. A checkpoint
whose layers then differ has its own model class and loads with trust_remote_code=True. Closed layers are always left
out. A decoder loses heads, columns, layers and residual width, of heads and columns as many as the layer that has the
most left allows. What stays at full width, since transformers has no word for it, is said.

config.model.init_from takes every checkpoint that this command writes. Fine-tuned elsewhere, it loses its zeros in one
step: the model card has the two lines that keep them. With --push-to-hub it is uploaded by the token of `hf auth login`
or HF_TOKEN; --dry-run tells what would be.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from prune_jax.errors import UserError
from prune_jax.run import folder as runs
from prune_jax.run.commands import arguments

_FILES = {"hf": ("config.json", "model.safetensors"), "stablehlo": ("model.json", "model*.stablehlo"),
          "onnx": ("model.json", "model*.onnx")}  # fmt: skip


def model_of(network: runs.Network):
    """(the network's model, its task's name, the names of its classes) of a run, by its saved config.

    A regression has no classes.
    """
    from prune_jax import config as config_lib
    from prune_jax import models
    from prune_jax.config.following import OTHERWISE
    from prune_jax.data.glue import task_of
    from prune_jax.export import hf

    config = config_lib.completed(network.config)
    with config.ignore_type():
        for key, value in OTHERWISE.items():  # of runs from before there was a choice
            room, name = key.split(".")
            if config[room][name] is None:
                config[room][name] = value
    task = task_of(config.data)
    labels = task.labels or (() if task.is_regression else tuple(map(str, range(task.num_labels))))
    return models.create(config, task, hf.vocab_size(network.params)), task.name, labels


def _check_target(run: Path, target: Path, names: Sequence[str], force: bool) -> None:
    if target == run or target in run.parents:
        raise UserError(f"{target} is or holds the run itself; choose another folder")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; choose a folder")
    if target.is_dir() and any(target.iterdir()):
        if not force:
            raise UserError(f"{target} is not empty; choose another folder, or --force to replace an earlier export")
        if not all(any(target.glob(name)) for name in names):
            raise UserError(f"{target} is not an earlier export ({', '.join(names)}): it is left as it is")


def export(
    run,
    target,
    kind: str = "final",
    shrink: bool = False,
    force: bool = False,
    form: str = "hf",
    int8: bool = False,
    lengths: Sequence[int] = (),
    place: str = "",
    rows: int = 0,
    platforms: Sequence[str] = (),
) -> dict:
    """Writes the network of the run in `run` to the folder `target`, whole or not at all.

    Args:
      place: where it is going to be on the hub, for its model card; "": only here.
      rows, platforms: of a StableHLO file, the size of its batches and where it runs; 0 and (), any and all.

    Returns its config.json, with `notes` on what stays at full width, or its model.json where form is "stablehlo" in
    place of "hf", or "onnx".

    Raises:
      UserError: there is no such run or checkpoint, the network has not what is asked for, or target holds something
        that is not an earlier export.
    """
    from prune_jax import files
    from prune_jax.export import checkpoint, onnx, stablehlo
    from prune_jax.models import Bert
    from prune_jax.models.decoder import Decoder

    run, target = Path(os.path.realpath(run)), Path(os.path.realpath(target))
    runs.read_config(run)  # a folder that is not a run's is the first mistake to report
    kind = arguments.kind_of(run, kind)
    network = runs.load(run, kind)
    _check_target(run, target, _FILES[form], force)
    model, task, labels = model_of(network)
    if isinstance(model, Decoder) and form == "hf":
        return _decoder(run, target, network, model, shrink)
    if form == "hf" and not isinstance(model, Bert):
        raise UserError("only a BERT or a decoder can be exported to transformers; this run's network is neither")
    longest = model.cfg.max_positions if isinstance(model, Bert) else 0
    if isinstance(model, Decoder):  # which could take any, by itself
        longest = network.config.model.max_positions
    for length in lengths:
        if not 0 < length <= longest:
            raise UserError(f"--length is {length}; allowed: {f'1 to {longest}' if longest else 'none, with images'}")
    if (rows or form == "onnx") and longest and not lengths:
        lengths = (min(network.config.data.max_len, longest),)  # a batch of a given size is one of a given shape
    with files.write_folder(target, replace=True) as folder:
        if form == "hf":
            summary, made = (
                files.read_json(path) if (path := run / name).is_file() else {}
                for name in ("summary.json", "provenance.json")
            )
            words, own = made.get("command"), (network.params, network.gates, model, labels, shrink)
            command = shlex.join(map(str, words)) if isinstance(words, list) else ""
            length = network.config.data.max_len
            return write_bert(folder, *own, run / "tokenizer", place or target.name, kind, summary, length, command)
        what = (folder, model, network.params, network.gates, task, longest or None, labels)
        if form == "onnx":
            written = onnx.write(*what, shrink, lengths, rows)
        else:
            written = stablehlo.write(*what, int8, shrink, lengths, platforms or stablehlo.PLATFORMS, rows)
        if written["max_length"]:
            longest = min(network.config.data.max_len, written["max_length"])
            checkpoint.write_tokenizer(folder, run / "tokenizer", longest, model.inputs)
        return written


def _decoder(run: Path, target: Path, network: runs.Network, model, shrink: bool) -> dict:
    from prune_jax import files
    from prune_jax.data import tokenizer
    from prune_jax.export import checkpoint, decoder, shrunk_decoder
    from prune_jax.pruning.merge import merge

    cfg, notes, longest = model.cfg, [], network.config.model.max_positions
    params = merge(network.params, network.gates)
    (name,) = decoder.describe(cfg, longest)["architectures"]
    if shrink:
        cfg, params, notes = shrunk_decoder.shrink(model, params, name)
    if not shrunk_decoder.loads(cfg, name):
        notes.append(f"transformers 5 does not load it: its {name} has a hidden_size that num_attention_heads divides")
    described = decoder.describe(cfg, longest)
    with files.write_folder(target, replace=True) as folder:
        checkpoint.write_tokenizer(folder, run / "tokenizer", described["max_position_embeddings"], ("input_ids",))
        if (generation := run / "tokenizer" / tokenizer.GENERATION).is_file():
            files.write_json(folder / generation.name, files.read_json(generation))
        described |= decoder.special_ids(folder)
        files.write_json(folder / "config.json", described)
        decoder.write_tensors(folder, params)
    return described | {"notes": notes}


def write_bert(
    folder: Path,
    params: dict,
    gates: dict,
    model,
    labels: Sequence[str],
    shrink: bool,
    tokenizer: Path,
    place: str,
    kind: str,
    summary: dict,
    length: int,
    command: str = "",
) -> dict:
    """Fills an existing folder with a checkpoint and its card.

    Args:
      params, gates: of the Bert `model`; labels, shrink: as checkpoint.describe's; tokenizer, length: as
        checkpoint.write's.
      place, kind, summary, command: as card.write's.
    Returns:
      Its config.json, with `notes` on what stays at full width.
    """
    from prune_jax import files
    from prune_jax.export import card, checkpoint
    from prune_jax.export.names import tensor_name
    from prune_jax.models import units
    from prune_jax.pruning import trees

    padding = checkpoint.padding(tokenizer)
    config, tensors, notes = checkpoint.describe(params, gates, model.cfg, labels, shrink, padding)
    config = checkpoint.write(folder, config, tensors, tokenizer, length)
    gated = trees.by_name(units.gate_shapes(model, "unstructured"))
    kernels = dict.fromkeys(tensor_name(tuple(name.split("/")), model.cfg.architecture or "bert") for name in gated)
    size = (folder / "model.safetensors").stat().st_size
    text = card.write(config, card.zeros(tensors, kernels), size, place, kind, summary, command)
    files.write_text(folder / "README.md", text)
    return config | {"notes": notes}


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("export", __doc__)
    parser.add_argument("run", metavar="RUN_DIR", help="the folder of a run")
    parser.add_argument("target", metavar="OUT_DIR", help="the folder to write")
    arguments.add_kind(parser)
    parser.add_argument("--format", choices=tuple(_FILES), default="hf", help="what to write")
    parser.add_argument("--shrink", action="store_true", help="cut out units that are closed as a whole")
    parser.add_argument("--int8", action="store_true", help="stablehlo: 8 bits per weight, a scale per output channel")
    parser.add_argument(
        "--length", type=int, nargs="+", default=(), metavar="N", help="stablehlo, onnx: one file per length, in tokens"
    )
    parser.add_argument(
        "--batch", type=int, default=0, metavar="N", help="stablehlo, onnx: batches of N rows, of one length"
    )
    parser.add_argument(
        "--platform", nargs="+", default=(), choices=("cpu", "cuda", "tpu"), help="stablehlo: where it runs (all)"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export in OUT_DIR")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="hf: upload the export, with your own token")
    parser.add_argument("--dry-run", action="store_true", help="with --push-to-hub: tell what would be uploaded")
    args = parser.parse_args(argv)
    if args.push_to_hub:
        from prune_jax.export import hub

        hub.check(args.push_to_hub)
        if args.format != "hf":
            raise UserError("--push-to-hub needs --format=hf")
        if not args.dry_run:
            hub.check_token()
    elif args.dry_run:
        raise UserError("--dry-run is of --push-to-hub, which is not given")
    if args.int8 and args.format != "stablehlo":
        raise UserError(
            "--int8 needs --format=stablehlo: a BERT of transformers has no 8-bit weights, nor an ONNX file"
        )
    if args.platform and args.format == "onnx":
        raise UserError("--platform needs --format=stablehlo: an ONNX file runs wherever ONNX Runtime does")
    if args.length and args.format == "hf":
        raise UserError("--length needs --format=stablehlo or onnx: a BERT of transformers takes any length")
    if args.batch and args.format == "hf":
        raise UserError("--batch needs --format=stablehlo or onnx: a checkpoint of transformers takes any")
    if args.platform and args.format == "hf":
        raise UserError("--platform needs --format=stablehlo: a checkpoint of transformers runs on any")
    if args.batch < 0:
        raise UserError(f"--batch is {args.batch}; allowed: 1 or more")
    written = export(
        args.run,
        args.target,
        args.kind,
        args.shrink,
        args.force,
        args.format,
        args.int8,
        args.length,
        args.push_to_hub or "",
        args.batch,
        args.platform,
    )
    if args.format != "hf":
        print(
            f"{args.target}: {written['weights']}, {written['bytes']:,} bytes; largest logit difference "
            f"{written['largest_logit_difference']:.2e} where the largest logit is {written['largest_logit']:.2f}"
        )
        if time := written.get("milliseconds"):
            size = f"{args.batch or 8} examples" + (f" of {most} tokens" if (most := written["max_length"]) else "")
            print(f"{size}: {time['onnxruntime']:.2f} ms in ONNX Runtime, {time['jax']:.2f} ms in jax")
        return
    keys = ("layer_heads", "layer_ffn", "pooler_width")
    keys += ("hidden_size", "num_key_value_heads", "intermediate_size") if "num_key_value_heads" in written else ()
    sizes = "".join(f", {key} {written[key]}" for key in keys if key in written)
    how = "; load it with trust_remote_code=True" if "auto_map" in written else ""
    layers = f", {written['num_hidden_layers']} layers" if args.shrink else ""
    print(f"{args.target}: {written['architectures'][0]}{layers}{sizes}{how}")
    for note in written["notes"]:
        print(note)
    if args.push_to_hub and args.dry_run:
        print(f"--dry-run: {args.push_to_hub} would receive, and nothing was sent:")
        for name, size in hub.files_of(Path(args.target)):
            print(f"  {name}  {size:,} bytes")
    elif args.push_to_hub:
        print(f"uploaded to {hub.push(Path(args.target), args.push_to_hub)}")
