"""An artifact as the folder of a run again.

    python -m prune_jax.decompress IN.pjx OUT_DIR

OUT_DIR gets config.json, the network as its best checkpoint, and the tokenizer, so --config.model.init_from takes it.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from prune_jax import command
from prune_jax import config as config_lib
from prune_jax import workdir as workdir_lib
from prune_jax.compress import artifact
from prune_jax.errors import UserError


def unpack(path, folder) -> None:
    """Writes the artifact in `path` as the run folder `folder`, whole or not at all.

    Raises:
      UserError: the artifact cannot be read, or folder exists and is not an empty folder, or cannot be written.
    """
    from prune_jax import checkpoint

    folder = Path(os.path.abspath(folder))
    if os.path.lexists(folder) and (not folder.is_dir() or folder.is_symlink() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose the name of a new folder")
    found = artifact.read(path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            workdir_lib.write_json(partial / "config.json", config_lib.to_json(found.config))
            with contextlib.closing(checkpoint.Checkpoints(partial / "checkpoints")) as checkpoints:
                checkpoints.save_best(0, {"params": found.params, "gates": found.gates}, {})
            artifact.save_tokenizer(found.tokenizer, partial / "tokenizer", path)
            partial.chmod(0o777 & ~_umask())
            os.rename(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m prune_jax.decompress", description="Unpacks an artifact.")
    parser.add_argument("artifact", help="a .pjx file")
    parser.add_argument("out_dir", help="the folder to make; it must not exist, or be empty")
    args = parser.parse_args(argv)
    unpack(args.artifact, args.out_dir)
    print(f"{args.out_dir} holds the network of {args.artifact}")


if __name__ == "__main__":
    sys.exit(command.run("decompress", main))
