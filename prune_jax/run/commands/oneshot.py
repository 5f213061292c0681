"""Prunes a checkpoint in one shot, without training: checkpoint folder to checkpoint folder.

    prune-jax oneshot CHECKPOINT OUT_DIR --data FILE [FILE ...] [--eval FILE [FILE ...]] [OPTION ...]
    prune-jax oneshot CHECKPOINT OUT_DIR --config.data.task=TASK --config.data.dir=DIR [OPTION ...]

CHECKPOINT is a folder of transformers with its tokenizer, and so is OUT_DIR.

A decoder, a LlamaForCausalLM, MistralForCausalLM or Qwen2ForCausalLM, takes --data, text files or folders of .txt
files, and is pruned on windows of it chosen at random. Perplexity, before and after, is that of --eval; without it, of
the last tenth of --data, which then is not pruned on.

A BertForSequenceClassification takes the data of its task by the keys of an experiment, --config.data.KEY, and is
pruned on training examples chosen at random. The task's metric is that of its evaluation data.

The head, embeddings and norms stay dense; closed weights stay closed. OUT_DIR/oneshot.json has the perplexity or
metric before and after, the error of each kernel's outputs, sizes and times.
"""

import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.run.commands import arguments

_TEXTS = ("task", "source", "dir", "train", "eval", "text", "label", "label_names", "metric", "cache_dir")
_DATA = dict.fromkeys(_TEXTS, str) | {"max_len": int, "holdout": int, "max_train_examples": int}  # of config.data
_KEYS = {  # an option: the keys of a config that it stands for
    "method": ("pruning.method", "oneshot.method"),
    "structure": ("pruning.structure",),
    "sparsity": ("oneshot.sparsity",),
    "scope": ("oneshot.scope",),
    "target": ("oneshot.target",),
    "examples": ("oneshot.examples",),
    "correct": ("oneshot.correct",),
    "bits": ("sparsegpt.bits",),
    "length": ("data.max_len",),
    "batch_size": ("train.eval_batch_size",),
    "data": ("data.train",),
    "eval": ("data.eval",),
}


def prune(source: Path, target: Path, args: Any) -> dict:
    """Prunes the checkpoint in `source` into the folder `target`, whole or not at all; returns oneshot.json.

    Raises:
      UserError: what is read cannot be used; nothing is written then.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already; choose another folder")
    files.check_writable(Path(os.path.abspath(target)).parent)
    from prune_jax import methods
    from prune_jax.export import decoder
    from prune_jax.export.names import ARCHITECTURES

    if args.method not in (allowed := (*methods.ONESHOT, "magnitude")):
        raise UserError(f"--method is {args.method!r}; allowed: {', '.join(allowed)}")
    config = source / "config.json"
    is_bert = config.is_file() and files.read_json(config).get("model_type") in ARCHITECTURES
    own = {name: value for name in _DATA if (value := getattr(args, f"config.data.{name}")) is not None}
    if is_bert and (args.data or args.eval or not own):
        raise UserError(f"{source} is a BERT; it takes the data of its task, as --config.data.task and .dir")
    if not is_bert:
        decoder.read_config(source)
        if own or not args.data:
            raise UserError(f"{source} is a decoder; it takes text, --data FILE")
        if not (source / "tokenizer.json").is_file():
            raise UserError(f"{source} has no tokenizer.json")
    if args.bits and args.method != "sparsegpt":
        raise UserError(f"--bits is {args.bits}; allowed with --method={args.method}: 0, for sparsegpt alone rounds")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return _pruned(source, target, args, _config(source, args, own, Path(scratch)), not is_bert)
        except UserError as error:
            raise UserError(_in_options(str(error), is_bert)) from error


def _config(source: Path, args: Any, own: dict[str, Any], scratch: Path) -> Any:
    """The config of a run of no epochs that does the same."""
    from prune_jax import config as config_lib
    from prune_jax.data.language import read_texts

    config = config_lib.default()
    config.model.init_from, config.train.epochs, config.train.batch_size = str(source), 0, 1
    config.report.sinks, config.data.source = (), "auto"
    given = {name: getattr(args, name) for name in _KEYS} | {"data": "", "eval": ""}
    if args.data:
        config.model.name, config.data.task, config.data.source = "decoder", "lm", "text"
        for name in ("data", "eval"):
            paths = getattr(args, name)
            given[name] = str(paths[0]) if len(paths) == 1 else ""
            if len(paths) > 1:
                given[name] = str(scratch / f"{name}.txt")
                Path(given[name]).write_text(read_texts(paths), encoding="utf-8")
    for name, value in given.items():
        for room, key in (path.split(".") for path in _KEYS[name]):
            if value is not None:
                with config[room].ignore_type():
                    config[room][key] = value
    with config.data.ignore_type():
        config.data.update(own)
    if args.data and args.length is None:
        config.data.max_len = 512
    return config


def _in_options(message: str, is_bert: bool) -> str:
    """A message with the options of this command in the place of the keys that they stand for.

    A BERT's data has its keys for options.
    """
    named = {key: f"--{name.replace('_', '-')}" for name, keys in _KEYS.items() for key in keys}
    named = {key: option for key, option in named.items() if not (is_bert and key.startswith("data."))}
    found = "|".join(map(re.escape, named))
    return re.sub(rf"config\.({found})(?!\w)", lambda match: named[match[1]], message)


def _pruned(source: Path, target: Path, args: Any, config: Any, is_decoder: bool) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from prune_jax.export import decoder, shrunk_decoder
    from prune_jax.pruning import gates as gates_lib
    from prune_jax.pruning import trees
    from prune_jax.run import evaluate, inputs, network, oneshot

    config = inputs.resolve(config)[0]
    dataset = inputs.load_data(config)
    label_names = config.data.label_names
    config = inputs.with_found(config, dataset.task)
    network.check_vocabulary(config, dataset)
    model, _, plan = network.made(config, dataset)
    start = network.start(config, dataset, model, label_names)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
    if lacking := trees.by_name(shapes["params"]).keys() - start.params.keys():
        parts = ", ".join(sorted({name.split("/")[0] for name in lacking}))
        raise UserError(f"{source} has no {parts} of {dataset.task.name}: {start.line}")
    opened = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), shapes["gates"])
    params, gates = jax.tree.map(jnp.asarray, start.into(shapes["params"], opened))
    if is_decoder:
        evals = {name: s.take(np.arange(min(len(s), args.eval_windows))) for name, s in dataset.evals.items()}
        dataset = dataset._replace(evals=evals)
    measure, name = evaluate.evaluator(config, model, dataset), dataset.task.metrics[0]
    before = measure(params, gates)["eval_metric"]
    print(f"dense: {name} {before:.4f}", flush=True)
    params, gates, entry = oneshot.prune(config, model, plan, params, gates, dataset, print, _tell, model.head)
    if is_decoder:  # what is evaluated is what is written: rounded to the dtype of the files
        dtype = decoder.dtype(source)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)
    split = next(iter(dataset.evals.values()))
    entry |= {
        "sparsity": gates_lib.sparsity({key: gate for key, gate in gates.items() if key != model.head}),
        "bits": args.bits,
        "length": config.data.max_len,
        "metric_name": name,
        "metric_before": before,
        "metric_after": measure(params, gates)["eval_metric"],
        "evaluated_tokens": int(split.lengths.sum()),
    }
    with files.write_folder(target, replace=True) as folder:
        params, gates = jax.device_get((params, gates))
        if is_decoder:
            cfg = None
            if args.shrink:  # what is closed is zero here
                (architecture,) = files.read_json(source / "config.json")["architectures"]
                cfg, params, _ = shrunk_decoder.shrink(model, jax.tree.map(np.asarray, params), architecture)
            decoder.write(folder, source, params, dtype, cfg)
        else:
            _write_bert(folder, params, gates, model, dataset, args.shrink, entry, target.name)
        entry |= dict(zip(("weights", "nonzero_weights"), _weights(folder / "model.safetensors"), strict=True))
        files.write_json(folder / "oneshot.json", entry)
    return entry


def _tell(done: Any) -> None:
    left = time.strftime("%H:%M:%S", time.gmtime(done.seconds_left))
    print(f"{done.number}/{done.total} {done.name}: error {done.error:.3e}, {left} left", flush=True)


def _write_bert(folder: Path, params: Any, gates: Any, model: Any, dataset: Any, shrink: bool, entry: dict, place: str):
    from prune_jax.run.commands import export

    task = dataset.task
    labels = task.labels or (() if task.is_regression else tuple(map(str, range(task.num_labels))))
    summary = {
        "method": entry["method"],
        "metric_name": entry["metric_name"],
        "final_metric": entry["metric_after"],
        "dense_metric": entry["metric_before"],
        "task": task.name,
    }
    with tempfile.TemporaryDirectory() as tokenizer:
        dataset.tokenizer.save(tokenizer)
        export.write_bert(
            folder, params, gates, model, labels, shrink, Path(tokenizer), place, "last", summary, entry["length"]
        )


def _weights(path: Path) -> tuple[int, int]:
    """(the weights in a file, those that are not 0)."""
    import numpy as np

    from prune_jax.export import tensors

    found = tensors.read(path).values()
    return sum(t.size for t in found), sum(int(np.count_nonzero(t)) for t in found)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("oneshot", __doc__)
    parser.add_argument("source", metavar="CHECKPOINT", help="the folder of a transformers checkpoint")
    parser.add_argument("out", metavar="OUT_DIR", help="the folder to write")
    parser.add_argument("--data", nargs="+", default=(), metavar="FILE", help="text files or folders of .txt files")
    parser.add_argument("--eval", nargs="+", default=(), metavar="FILE", help="text to evaluate on")
    parser.add_argument("--method", default="sparsegpt", help="sparsegpt, wanda, obs, or magnitude to compare with")
    parser.add_argument("--sparsity", type=float, default=0.5, help="the closed fraction of each kernel")
    parser.add_argument(
        "--structure", default="unstructured", help="unstructured, n:m, block:RxC, or head, ffn, head+ffn"
    )
    parser.add_argument(
        "--scope",
        choices=("local", "global"),
        default="local",
        help="where single weights close: the sparsity is that of each kernel, or of all kernels together",
    )
    parser.add_argument(
        "--target",
        choices=("units", "flops"),
        default="units",
        help="what the sparsity is of, where units close: of each group's units, or of all operations",
    )
    parser.add_argument("--shrink", action="store_true", help="cut out units that are closed as a whole")
    parser.add_argument("--correct", action="store_true", help="solve against the outputs of the dense network, too")
    parser.add_argument("--bits", type=int, default=0, help="sparsegpt: round to a grid of so many bits; 0, do not")
    parser.add_argument("--examples", type=int, default=128, help="windows of text, or training examples, to prune on")
    parser.add_argument("--length", type=int, help="tokens of a window: 512; of a BERT's text: 128")
    parser.add_argument("--eval-windows", type=int, default=64, help="the most windows to evaluate on")
    parser.add_argument("--batch-size", type=int, default=8, help="windows, or texts, at once")
    for name, kind in _DATA.items():
        parser.add_argument(f"--config.data.{name}", type=kind, metavar="VALUE", help="a BERT: as of an experiment")
    args = parser.parse_args(argv)
    if args.eval_windows < 1:
        raise UserError(f"--eval-windows is {args.eval_windows}; allowed: at least 1")
    target = Path(os.path.expanduser(args.out))
    summary = prune(Path(os.path.expanduser(args.source)), target, args)
    worst = max(summary["layers"], key=lambda layer: layer["error"])
    print(
        f"{target}: {summary['metric_name']} {summary['metric_before']:.4f} -> {summary['metric_after']:.4f}, "
        f"{summary['sparsity']:.1%} of the kernels closed, {summary['nonzero_weights']:,} of {summary['weights']:,} "
        f"weights left, largest error {worst['error']:.3e} at {worst['name']}, {summary['seconds']:.0f} s"
    )
