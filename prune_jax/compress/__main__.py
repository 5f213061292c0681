"""A run's network as one file.

python -m prune_jax.compress RUN_DIR OUT.pjx [--kind=KIND] [--bits=N] [--bias-bits=N] [--embedding-bits=N]
    [--no-tokenizer] [--force]
"""

import argparse
import os
import sys
import time
from pathlib import Path

from prune_jax import command, runs
from prune_jax.errors import UserError

DEFAULT_BITS = 4


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m prune_jax.compress", description="A run's network as one file.")
    parser.add_argument("run_dir", help="the folder of a run")
    parser.add_argument("out", help="the file to write, by custom with the suffix .pjx")
    parser.add_argument("--kind", help="checkpoint; default quantised if there is one, or best")
    parser.add_argument(
        "--bits",
        type=int,
        help="bring each gated kernel to 2^bits values by k-means, unless it has no more; 0: keep it as it is; "
        f"default {DEFAULT_BITS}, and 0 for a quantised checkpoint",
    )
    parser.add_argument("--bias-bits", type=int, default=0, help="the same for biases and LayerNorms; default 0")
    parser.add_argument("--embedding-bits", type=int, default=0, help="the same for embeddings; default 0")
    parser.add_argument("--no-tokenizer", action="store_true", help="leave the tokenizer out")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    args = parser.parse_args(argv)

    from prune_jax.compress import artifact, quantise

    out = Path(args.out)
    if out.is_dir() or (os.path.lexists(out) and not args.force):
        raise UserError(f"{out} exists already; choose another name" + ("" if out.is_dir() else ", or add --force"))
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out} cannot be written: there is no folder {out.parent}")
    runs.read_config(args.run_dir)  # a folder that is not a run's is told before anything else
    kind = args.kind or runs.final_kind(args.run_dir)
    bits = args.bits if args.bits is not None else 0 if kind == "quantised" else DEFAULT_BITS
    config, params, gates = runs.load(args.run_dir, kind)
    text = None
    tokenizer = Path(args.run_dir) / "tokenizer" / "tokenizer.json"
    if tokenizer.is_file() and not args.no_tokenizer:
        text = tokenizer.read_text(encoding="utf-8")
    start = time.perf_counter()
    params = quantise.quantise_network(params, gates, bits, args.bias_bits, args.embedding_bits)
    report = artifact.write(out, config, params, gates, text)
    for line in artifact.table(report):
        print(line)
    print(f"{out} written in {time.perf_counter() - start:.1f} s, from the {kind} checkpoint of {args.run_dir}")


if __name__ == "__main__":
    sys.exit(command.run("compress", main))
