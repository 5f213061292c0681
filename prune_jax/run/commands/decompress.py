"""Unpacks an artifact into the folder of a run.

    prune-jax decompress IN.pjx OUT_DIR

OUT_DIR receives config.json, the network as its best checkpoint, and the tokenizer. config.model.init_from takes such a
folder, and so do evaluate, export and compress.
"""

from collections.abc import Sequence

from prune_jax.run.commands import arguments


def unpack(path, folder) -> None:
    """Writes the artifact in `path` as the run folder `folder`, whole or not at all.

    Raises:
      UserError: the artifact cannot be read, or folder exists and is not an empty folder, or cannot be written.
    """
    from prune_jax import files
    from prune_jax.run import artifact
    from prune_jax.run import folder as runs

    folder = runs.new_folder(folder)
    network, tokenizer = artifact.read(path)
    with files.write_folder(folder) as partial:
        runs.write(partial, network)
        artifact.save_tokenizer(tokenizer, partial / "tokenizer", path)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("decompress", __doc__)
    parser.add_argument("artifact", metavar="IN.pjx", help="a file that compress wrote")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="the folder to make; it must not exist, or be empty")
    args = parser.parse_args(argv)
    unpack(args.artifact, args.out_dir)
    print(f"{args.out_dir} holds the network of {args.artifact}")
