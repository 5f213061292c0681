"""A dated zip of the sources, the configs and the index of the results, and the way back.

    python -m prune_jax.snapshot -m "message" [--root DIR] [--out DIR]
    python -m prune_jax.snapshot --restore ZIP --to DIR

Data, checkpoints, caches, environments and .git stay out. Of a run's folder go in the files that say what it was and
what came of it (config.json, summary.json, metrics.csv, ...), not its arrays.
"""

import argparse
import os
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from prune_jax import command
from prune_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
_LARGEST = 5_000_000  # bytes of a file that is still source
_SKIPPED_FOLDERS = {"__pycache__", "checkpoints", "tensorboard", "tokenizer", "mlruns", "wandb", "node_modules",
                    "slurm", "snapshots", "build", "dist"}  # fmt: skip
_HIDDEN_SOURCES = {".ci", ".github", ".gitignore", ".gitattributes", ".pre-commit-config.yaml"}
_DATA = {".zip", ".gz", ".tsv", ".npz", ".npy", ".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".parquet",
         ".arrow", ".pyc", ".so"}  # fmt: skip
_INDEX = {"config.json", "summary.json", "provenance.json", "metrics.csv", "layers.csv", "summary.csv", "runs.csv"}
_TREE, _README = "tree/", "README.md"


def _in_results(relative: Path) -> bool:
    return any(part.startswith("results_") for part in relative.parts[:-1])


def _belongs(root: Path, relative: Path) -> bool:
    path = root / relative
    if _in_results(relative):
        return relative.name in _INDEX
    if relative.name.startswith(".") and relative.name not in _HIDDEN_SOURCES:
        return False
    return relative.suffix not in _DATA and path.stat().st_size <= _LARGEST


def files(root: Path) -> list[Path]:
    """The files of a snapshot of `root`, relative to it and sorted; a link to a folder is not followed."""
    found = []
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = [
            name for name in sorted(folders)
            if name not in _SKIPPED_FOLDERS and not name.endswith(".egg-info")
            and (not name.startswith(".") or name in _HIDDEN_SOURCES)
            and not (here / name / "pyvenv.cfg").exists() and not (here / name).is_symlink()
        ]  # fmt: skip
        for name in names:
            relative = (here / name).relative_to(root)
            if (here / name).is_file() and _belongs(root, relative):
                found.append(relative)
    return sorted(found)


def tree(paths: list[Path]) -> list[str]:
    """Lines of a file tree."""
    nested: dict = {}
    for path in paths:
        node = nested
        for part in path.parts:
            node = node.setdefault(part, {})

    def lines(node, indent):
        for i, (name, inner) in enumerate(node.items()):
            last = i == len(node) - 1
            yield f"{indent}{'└── ' if last else '├── '}{name}{'/' if inner else ''}"
            yield from lines(inner, indent + ("    " if last else "│   "))

    return list(lines(nested, ""))


def _commit(root: Path) -> str:
    def git(*args):
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "none"


def save(root: Path, out: Path, message: str) -> Path:
    """Writes out/<root's name>_<YYYYmmdd-HHMMSS>.zip, whole or not at all: README.md, and the files under tree/.

    Raises:
      UserError: root is not a folder, or out cannot be written.
    """
    if not root.is_dir():
        raise UserError(f"--root {str(root)!r} is not a folder")
    now = time.time()
    stem = f"{root.resolve().name}_{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}"
    paths = files(root)
    readme = [
        f"# Snapshot {stem}", "", message, "", f"- {time.strftime('%Y-%m-%d %H:%M:%S %z', time.localtime(now))}",
        f"- commit: {_commit(root)}", f"- {len(paths)} files, {sum((root / p).stat().st_size for p in paths):,} bytes",
        "", "```", *tree(paths), "```", "",
        f"`python -m prune_jax.snapshot --restore {stem}.zip --to DIR` restores it.",
    ]  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        target, suffix = out / f"{stem}.zip", 1
        while target.exists():
            suffix += 1
            target = out / f"{stem}_{suffix}.zip"
        partial = out / f".{target.name}.partial"
        try:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
                archive.writestr(_README, "\n".join(readme) + "\n")
                for path in paths:
                    archive.write(root / path, _TREE + path.as_posix())
            os.replace(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write a snapshot into {out}: {error.strerror or error}") from error
    return target


def restore(archive_path: Path, to: Path) -> int:
    """Writes the files of a snapshot, with their permissions, into the empty or new folder `to`; returns how many.

    Raises:
      UserError: not a snapshot, a damaged one, or `to` holds something already.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {str(to)!r} is not empty; name a new folder")
    try:
        with zipfile.ZipFile(archive_path) as archive:
            wanted = {to / info.filename.removeprefix(_TREE): info for info in archive.infolist()
                      if info.filename.startswith(_TREE) and not info.is_dir()}  # fmt: skip
            broken = archive.testzip()
            if broken or _README not in archive.namelist():
                raise UserError(f"{archive_path} is not a sound snapshot ({broken or 'it has no ' + _README})")
            root = to.resolve()
            for path in wanted:
                if not path.resolve().is_relative_to(root):
                    raise UserError(f"{archive_path} is not a sound snapshot (it would write {path}, outside {to})")
            for path, info in wanted.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(info))
                path.chmod(stat.S_IMODE(info.external_attr >> 16) or 0o644)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot restore {archive_path} into {to}: {error}") from error
    return len(wanted)


def _main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m prune_jax.snapshot", description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--message", help="what the snapshot is of; it heads the readme")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="the tree to save (this program's)")
    parser.add_argument("--out", type=Path, default=Path("snapshots"), metavar="DIR", help="where it goes (snapshots)")
    parser.add_argument("--restore", type=Path, metavar="ZIP", help="bring a snapshot back")
    parser.add_argument("--to", type=Path, metavar="DIR", help="the new folder that --restore fills")
    args = parser.parse_args(argv)
    if args.restore:
        if args.to is None:
            raise UserError("--restore needs --to DIR")
        print(f"{restore(args.restore, args.to)} files restored into {args.to}")
    else:
        if not args.message:
            raise UserError('a snapshot needs a message: -m "what it is of"')
        print(save(args.root, args.out, args.message))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    return command.run("snapshot", _main, argv)


if __name__ == "__main__":
    sys.exit(main())
