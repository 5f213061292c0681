"""An artifact as the folder of a run again.

    python -m prune_jax.decompress IN.pjx OUT_DIR

OUT_DIR gets config.json, the network as its best checkpoint, and the tokenizer, so --config.model.init_from takes it.
"""

import argparse
import sys

from prune_jax import command, runs, workdir
from prune_jax.compress import artifact


def unpack(path, folder) -> None:
    """Writes the artifact in `path` as the run folder `folder`, whole or not at all.

    Raises:
      UserError: the artifact cannot be read, or folder exists and is not an empty folder, or cannot be written.
    """
    folder = runs.new_folder(folder)
    found = artifact.read(path)
    with workdir.write_folder(folder) as partial:
        runs.write(partial, runs.Network(found.config, found.params, found.gates))
        artifact.save_tokenizer(found.tokenizer, partial / "tokenizer", path)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m prune_jax.decompress", description="Unpacks an artifact.")
    parser.add_argument("artifact", help="a .pjx file")
    parser.add_argument("out_dir", help="the folder to make; it must not exist, or be empty")
    args = parser.parse_args(argv)
    unpack(args.artifact, args.out_dir)
    print(f"{args.out_dir} holds the network of {args.artifact}")


if __name__ == "__main__":
    sys.exit(command.run("decompress", main))
