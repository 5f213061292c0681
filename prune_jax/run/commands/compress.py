"""Writes a network as one file.

    prune-jax compress DIR OUT.pjx [--kind=KIND] [--bits=N] [--bias-bits=N] [--embedding-bits=N]
        [--no-tokenizer] [--force]

DIR is the folder of a run, or that of a transformers checkpoint with a head for classification. With N bits, k-means
brings a leaf of the network to at most 2^N values. A leaf that has no more stays as it is, bit for bit. The table that
is printed says what each leaf takes in the file.

Of a LeNet that was pruned by channels or hidden units, the network without its closed units is what is written: it
computes the same, and config.model.widths says its widths.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.pruning import trees
from prune_jax.run import folder as runs
from prune_jax.run.commands import arguments

DEFAULT_BITS = 4
_BITS = {
    "bits": f"of each gated kernel; 0 keeps it as it is (default: {DEFAULT_BITS}, and 0 for a quantised checkpoint)",
    "bias_bits": "of biases and LayerNorms; 0 keeps them as they are",
    "embedding_bits": "of embeddings; 0 keeps them as they are",
}


def _weights(params) -> int:
    return sum(leaf.size for leaf in trees.by_name(params).values())


def _narrowed(network: runs.Network) -> runs.Network:
    """A network that was pruned by groups without its closed units, where its config can say so."""
    from prune_jax import config as config_lib
    from prune_jax.models import units
    from prune_jax.pruning import structure
    from prune_jax.run.commands.export import model_of

    config = config_lib.completed(network.config)
    if structure.parse(config.pruning.structure).kind != "groups":
        return network
    model = model_of(network)[0]
    sizes, params, gates = units.narrowed(model, network.params, network.gates)
    if not sizes:
        return network
    with config.unlocked(), config.model.ignore_type():
        config.model.update(sizes)
    return runs.Network(config, params, gates)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("compress", __doc__)
    parser.add_argument("run", metavar="DIR", help="the folder of a run, or of a transformers checkpoint")
    parser.add_argument("out", metavar="OUT.pjx", help="the file to write")
    arguments.add_kind(parser)
    for name, text in _BITS.items():
        default = None if name == "bits" else 0
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, metavar="N", help=text)
    parser.add_argument("--no-tokenizer", action="store_true", help="leave the tokenizer out")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    args = parser.parse_args(argv)

    from prune_jax.compress import quantise
    from prune_jax.compress.artifact import table
    from prune_jax.run import artifact

    out = Path(args.out)
    if out.is_dir() or (os.path.lexists(out) and not args.force):
        raise UserError(f"{out} exists already; choose another name" + ("" if out.is_dir() else ", or add --force"))
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out} cannot be written: there is no folder {out.parent}")
    for name in _BITS:
        bits = getattr(args, name)
        if bits is not None and not 0 <= bits <= quantise.MAX_BITS:
            allowed = f"1 to {quantise.MAX_BITS}, or 0 to keep the weights as they are"
            raise UserError(f"--{name.replace('_', '-')} is {bits}; allowed: {allowed}")
    if out.resolve().is_relative_to(Path(args.run).resolve()):
        raise UserError(f"{out} is in the folder of the run, which is not to change; choose another place")
    network, text, kind = _open(Path(args.run), args.kind)
    bits = args.bits if args.bits is not None else 0 if kind == "quantised" else DEFAULT_BITS
    text = None if args.no_tokenizer else text
    start = time.perf_counter()
    whole = _weights(network.params)
    network = _narrowed(network)
    try:
        params = quantise.quantise_network(network.params, network.gates, bits, args.bias_bits, args.embedding_bits)
    except ValueError as error:
        raise UserError(f"the {kind or 'transformers'} checkpoint of {args.run}: {error}") from error
    report = artifact.write(out, network._replace(params=params), text)
    for line in table(report):
        print(line)
    left = _weights(network.params)
    if left < whole:
        rate = 4 * whole / report.size
        print(
            f"closed units cut out: {left:,} of {whole:,} weights are left; the rate to the uncut network is {rate:.1f}"
        )
    seconds = time.perf_counter() - start
    print(f"{out} written in {seconds:.1f} s, from the {kind or 'transformers'} checkpoint of {args.run}")


def _open(folder: Path, kind: str) -> tuple[runs.Network, str | None, str]:
    """(the network, the text of its tokenizer or None, which of a run's checkpoints it is or "")."""
    if not runs.is_run(folder) and (folder / "config.json").is_file() and not (folder / "summary.json").is_file():
        from prune_jax.run import predict

        if kind != "final":
            raise UserError(f"--kind is {kind}, which chooses among the checkpoints of a run; {folder} is none")
        return *predict.network_of_checkpoint(folder), ""
    runs.read_config(folder)  # a folder that is not a run's is the first mistake to report
    kind = arguments.kind_of(folder, kind)
    network, tokenizer = runs.load(folder, kind), folder / "tokenizer" / "tokenizer.json"
    if not tokenizer.is_file():
        return network, None, kind
    files.read_tokenizer(tokenizer)  # what is damaged is told before anything is written
    return network, files.read_text(tokenizer), kind
