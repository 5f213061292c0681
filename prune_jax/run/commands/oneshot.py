"""Prunes a checkpoint in one shot, without training: checkpoint folder to checkpoint folder.

    prune-jax oneshot CHECKPOINT OUT_DIR --data FILE [FILE ...] [--eval FILE [FILE ...]] [OPTION ...]
    prune-jax oneshot CHECKPOINT OUT_DIR --config.data.task=TASK --config.data.dir=DIR [OPTION ...]

CHECKPOINT is a folder of transformers with its tokenizer, and so is OUT_DIR.

A decoder, a LlamaForCausalLM, MistralForCausalLM or Qwen2ForCausalLM, takes --data, text files or folders of .txt
files, and is pruned on their first windows. Perplexity, before and after, is that of --eval; without it, of the last
tenth of --data, which then is not pruned on. The head stays dense.

A BertForSequenceClassification takes the data of its task by the keys of an experiment, --config.data.KEY, and is
pruned on training examples chosen at random. The task's metric is that of its evaluation data.

Embeddings and norms stay dense. OUT_DIR/oneshot.json has the perplexity or metric before and after, the error of each
kernel's outputs, sizes and times.
"""

import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prune_jax import files
from prune_jax.data.language import read_texts
from prune_jax.errors import UserError, first_line
from prune_jax.run.commands import arguments

METHODS = ("sparsegpt", "wanda", "obs", "magnitude")
_TEXTS = ("task", "source", "dir", "train", "eval", "text", "label", "label_names", "metric", "cache_dir")
_DATA = dict.fromkeys(_TEXTS, str) | {"max_len": int, "holdout": int, "max_train_examples": int}  # of config.data


def windows(tokens: Any, length: int) -> Any:
    """(windows, length): tokens in consecutive windows; what is left over is left out."""
    return tokens[: len(tokens) // length * length].reshape(-1, length)


def perplexity(logits: Any, params: Any, rows: Any, batch: int) -> float:
    """exp of the mean cross-entropy of all tokens but each window's first; rows: (windows, length)."""
    import jax.numpy as jnp

    from prune_jax.models.decoder import next_token_losses

    sums = [float(jnp.sum(next_token_losses(logits(params, part), part))) for part in _batches(rows, batch)]
    return math.exp(sum(sums) / (rows.shape[0] * (rows.shape[1] - 1)))


def _batches(rows: Any, batch: int) -> list[Any]:
    return [rows[i : i + batch] for i in range(0, len(rows), batch)]


def _method(name: str, bits: int) -> Any:
    from prune_jax.oneshot import obs, sparsegpt, wanda

    if bits and name != "sparsegpt":
        raise UserError(f"--bits is {bits}; allowed with --method={name}: 0, for sparsegpt alone rounds")
    if name == "sparsegpt":
        return sparsegpt.create(bits=bits)
    return {"wanda": wanda.create, "obs": obs.create, "magnitude": wanda.magnitude}[name]()


def _tokens(source: Path, paths: Sequence[str]) -> Any:
    import numpy as np

    if not (source / "tokenizer.json").is_file():
        raise UserError(f"{source} has no tokenizer.json")
    text = read_texts(paths)
    tokenizer = files.read_tokenizer(source / "tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def _data(source: Path, args: Any) -> tuple[Any, Any]:
    """(windows to prune on, windows to evaluate on)."""
    tokens = _tokens(source, args.data)
    held = _tokens(source, args.eval) if args.eval else tokens[len(tokens) * 9 // 10 :]
    calibration = windows(tokens if args.eval else tokens[: len(tokens) * 9 // 10], args.length)
    if len(calibration) < args.examples:
        raise UserError(
            f"--examples is {args.examples}, of --length {args.length}; the text has {len(calibration)} such windows"
        )
    evaluated = windows(held, args.length)
    if not len(evaluated):
        raise UserError(f"--length is {args.length}; the text to evaluate on has {len(held)} tokens")
    return calibration[: args.examples], evaluated[: args.eval_windows]


def prune(source: Path, target: Path, args: Any) -> dict:
    """Prunes the checkpoint in `source` into the folder `target`, whole or not at all; returns oneshot.json.

    Raises:
      UserError: what is read cannot be used; nothing is written then.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already; choose another folder")
    from prune_jax.export import decoder

    config = source / "config.json"
    kind = files.read_json(config).get("model_type") if config.is_file() else None
    own = {name: value for name in _DATA if (value := getattr(args, f"config.data.{name}")) is not None}
    if kind == "bert":
        if args.data or not own:
            raise UserError(f"{source} is a BERT; it takes the data of its task, as --config.data.task and .dir")
        return _prune_bert(source, target, args, own)
    decoder.read_config(source)
    if own or not args.data:
        raise UserError(f"{source} is a decoder; it takes text, --data FILE")
    return _prune_decoder(source, target, args)


def _prune_bert(source: Path, target: Path, args: Any, own: dict[str, Any]) -> dict:
    """Through a run of no epochs, whose network is exported."""
    from prune_jax import config as config_lib
    from prune_jax.models import HEADS
    from prune_jax.run import initial, inputs, train
    from prune_jax.run.commands import export

    config = config_lib.default()
    config.model.init_from, config.data.source, config.train.epochs, config.report.sinks = str(source), "auto", 0, ()
    config.pruning.method = config.oneshot.method = args.method
    config.pruning.structure, config.oneshot.sparsity, config.oneshot.target = (
        args.structure,
        args.sparsity,
        args.target,
    )
    config.oneshot.examples, config.oneshot.correct, config.sparsegpt.bits = args.examples, args.correct, args.bits
    for name, value in own.items():
        with config.data.ignore_type():
            config.data[name] = value
    resolved = inputs.resolve(config)[0]
    labels = inputs.load_data(resolved).task.labels
    network = initial.read(str(source), "best", labels)
    if not network.params.keys() & set(HEADS):
        raise UserError(f"{source} has no classifier of {resolved.data.task}: {network.note or 'it has none'}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".oneshot-", dir=target.parent) as scratch:
        run = Path(scratch) / "run"
        summary = train.train_and_evaluate(config, run)
        entry = files.read_json(run / "oneshot.json") | {"metric_name": summary["metric_name"]}
        export.export(run, Path(scratch) / "out", "best", shrink=args.shrink)
        weights = _weights(Path(scratch) / "out" / "model.safetensors")
        entry |= {"weights": weights[0], "nonzero_weights": weights[1], "bits": args.bits}
        files.write_json(Path(scratch) / "out" / "oneshot.json", entry)
        if target.is_dir():
            target.rmdir()
        os.replace(Path(scratch) / "out", target)
    return entry


def _weights(path: Path) -> tuple[int, int]:
    """(the weights in a file, those that are not 0)."""
    import numpy as np
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(path).values()
    return sum(t.size for t in tensors), sum(int(np.count_nonzero(t)) for t in tensors)


def _prune_decoder(source: Path, target: Path, args: Any) -> dict:
    import jax
    import jax.numpy as jnp

    from prune_jax.export import decoder as checkpoints
    from prune_jax.models import units
    from prune_jax.models.decoder import Decoder
    from prune_jax.oneshot.prune import oneshot
    from prune_jax.pruning import gates as gates_lib
    from prune_jax.pruning.plan import KEEP

    cfg, params, dtype = checkpoints.load(source)
    rows, held = _data(source, args)
    if rows.max(initial=0) >= cfg.vocab_size or held.max() >= cfg.vocab_size:
        raise UserError(f"the tokenizer in {source} has tokens beyond the {cfg.vocab_size} of the network")
    params = jax.tree.map(jnp.asarray, params)
    model = Decoder(cfg)
    fn = lambda params, tokens: model.apply({"params": params}, tokens)  # noqa: E731
    logits = jax.jit(fn)
    before = perplexity(logits, params, held, args.batch_size)
    print(f"dense: perplexity {before:.3f} over {held.size:,} tokens", flush=True)
    layers: list[dict] = []

    def tell(done: Any) -> None:
        layers.append({"name": done.name, "sparsity": done.sparsity, "error": done.error})
        left = time.strftime("%H:%M:%S", time.gmtime(done.seconds_left))
        print(f"{done.number}/{done.total} {done.name}: error {done.error:.3e}, {left} left", flush=True)

    start = time.monotonic()
    try:
        pruned, gates = oneshot(
            fn,
            params,
            [(jnp.asarray(part),) for part in _batches(rows, args.batch_size)],
            _method(args.method, args.bits),
            sparsity=args.sparsity,
            structure=units.chosen(model, args.structure) or args.structure,
            target=args.target,
            correct=args.correct,
            rules={} if cfg.tied else {"^head/": KEEP},
            progress=tell,
        )
    except ValueError as error:
        raise UserError(f"{source} cannot be pruned so: {first_line(error)}") from error
    seconds = time.monotonic() - start
    # What is evaluated is what is written: rounded to the dtype of the files.
    pruned = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), pruned)
    after = perplexity(logits, pruned, held, args.batch_size)
    total = sum(leaf.size for leaf in jax.tree.leaves(pruned))
    summary = {
        "method": args.method,
        "structure": args.structure,
        "target": args.target,
        "sparsity": gates_lib.sparsity(gates),
        "correct": args.correct,
        "bits": args.bits,
        "examples": args.examples,
        "length": args.length,
        "metric_name": "perplexity",
        "metric_before": before,
        "metric_after": after,
        "evaluated_tokens": int(held.size),
        "seconds": round(seconds, 1),
        "weights": total,
        "nonzero_weights": int(sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(pruned))),
        "layers": layers,
    }
    with files.write_folder(target) as folder:
        checkpoints.write(folder, source, pruned, dtype)
        files.write_json(folder / "oneshot.json", summary)
    return summary


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("oneshot", __doc__)
    parser.add_argument("source", metavar="CHECKPOINT", help="the folder of a transformers checkpoint")
    parser.add_argument("out", metavar="OUT_DIR", help="the folder to write")
    parser.add_argument("--data", nargs="+", default=(), metavar="FILE", help="text files or folders of .txt files")
    parser.add_argument("--eval", nargs="+", default=(), metavar="FILE", help="text to evaluate on")
    parser.add_argument("--method", choices=METHODS, default="sparsegpt", help="how it is pruned")
    parser.add_argument("--sparsity", type=float, default=0.5, help="the closed fraction of each kernel")
    parser.add_argument(
        "--structure", default="unstructured", help="unstructured, n:m, block:RxC, or head, ffn, head+ffn"
    )
    parser.add_argument(
        "--target",
        choices=("units", "flops"),
        default="units",
        help="what the sparsity is of, where units close: of each group's units, or of all operations",
    )
    parser.add_argument("--shrink", action="store_true", help="a BERT: cut out units that are closed as a whole")
    parser.add_argument("--correct", action="store_true", help="solve for the survivors by least squares, too")
    parser.add_argument("--bits", type=int, default=0, help="sparsegpt: round to a grid of so many bits; 0, do not")
    parser.add_argument("--examples", type=int, default=128, help="windows of text, or training examples, to prune on")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--eval-windows", type=int, default=64, help="the most windows to evaluate on")
    parser.add_argument("--batch-size", type=int, default=8, help="windows at once")
    for name, kind in _DATA.items():
        parser.add_argument(f"--config.data.{name}", type=kind, metavar="VALUE", help="a BERT: as of an experiment")
    args = parser.parse_args(argv)
    for flag, least in (("examples", 1), ("length", 2), ("eval_windows", 1), ("batch_size", 1)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag.replace('_', '-')} is {getattr(args, flag)}; allowed: at least {least}")
    if not 0 <= args.sparsity <= 1:
        raise UserError(f"--sparsity is {args.sparsity}; allowed: 0 to 1")
    if not 0 <= args.bits <= 16:
        raise UserError(f"--bits is {args.bits}; allowed: 0 to 16")
    target = Path(os.path.expanduser(args.out))
    summary = prune(Path(os.path.expanduser(args.source)), target, args)
    worst = max(summary["layers"], key=lambda layer: layer["error"])
    print(
        f"{target}: {summary['metric_name']} {summary['metric_before']:.4f} -> {summary['metric_after']:.4f}, "
        f"{summary['sparsity']:.1%} of the kernels closed, {summary['nonzero_weights']:,} of {summary['weights']:,} "
        f"weights left, largest error {worst['error']:.3e} at {worst['name']}, {summary['seconds']:.0f} s"
    )
