"""Zips the sources, the configs and the index of the results under today's date, and restores such a zip.

    prune-jax snapshot -m "message" [--root=DIR] [--out=DIR]
    prune-jax snapshot --restore=ZIP --to=DIR

Data, checkpoints, caches, environments and .git stay out. Of a run's folder, the files that say what it was and what
came of it (config.json, summary.json, metrics.csv, ...) go in, and its arrays stay out.
"""

import lzma
import os
import shutil
import subprocess
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from prune_jax.errors import UserError, first_line
from prune_jax.files import write_folder
from prune_jax.run.commands import arguments

_LARGEST = 5_000_000  # bytes of a file that is still source
_SKIPPED_FOLDERS = {"__pycache__", "checkpoints", "tensorboard", "tokenizer", "mlruns", "wandb", "node_modules",
                    "slurm", "snapshots", "build", "dist"}  # fmt: skip
_HIDDEN_SOURCES = {".ci", ".github", ".gitignore", ".gitattributes", ".pre-commit-config.yaml"}
_DATA = {".zip", ".gz", ".tsv", ".npz", ".npy", ".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".parquet",
         ".arrow", ".pyc", ".so"}  # fmt: skip
_INDEX = {"config.json", "summary.json", "provenance.json", "metrics.csv", "layers.csv", "summary.csv", "runs.csv"}
_TREE, _README = "tree/", "README.md"
_UNSUSPICIOUS, _DENSEST = 100_000_000, 200  # bytes that any zip may hold, and how much denser than its files one may be


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
    """The files of a snapshot of `root`, as sorted paths relative to it. Links to folders are not followed."""
    paths = []
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
                paths.append(relative)
    return sorted(paths)


def tree(paths: list[Path]) -> list[str]:
    """The lines of a drawing of a file tree."""
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
    """Writes out/<root's name>_<YYYYmmdd-HHMMSS>.zip, whole or not at all, and returns its path.

    The zip holds a README.md, and the files under tree/.

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
        f"`prune-jax snapshot --restore {stem}.zip --to DIR` restores it.",
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
    """Writes the files of a snapshot into the empty or new folder `to`, all or none.

    A file is read, written and run by those who could before. Other bits of its mode, such as setuid, do not come back.

    Returns:
      The number of files.
    Raises:
      UserError: the zip is not a snapshot, is damaged, is encrypted or holds far more than its size, or `to` holds
        something already.
    """
    to = Path(os.path.realpath(to))
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {str(to)!r} is not empty; name a new folder")
    try:
        with zipfile.ZipFile(archive_path) as archive:
            wanted = _checked(archive, archive_path)
            with write_folder(to) as folder:
                for name, info in wanted.items():
                    path = folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(info) as source, open(path, "wb") as sink:
                        shutil.copyfileobj(source, sink)
                    path.chmod((info.external_attr >> 16) & 0o777 or 0o644)
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"cannot restore {archive_path} into {to}: {first_line(error)}") from error
    return len(wanted)


def _checked(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The files below tree/ by their names there. UserError for what a snapshot never holds."""

    def fail(problem: str) -> UserError:
        return UserError(f"{path} is not a sound snapshot ({problem})")

    entries = archive.infolist()
    if _README not in archive.namelist():
        raise fail(f"it has no {_README}")
    total, most = sum(info.file_size for info in entries), max(_UNSUSPICIOUS, _DENSEST * os.path.getsize(path))
    if total > most:
        raise fail(f"it would unpack to {total:,} bytes, more than {_DENSEST} times its size")
    wanted: dict[str, zipfile.ZipInfo] = {}
    for info in entries:
        name = info.filename.removeprefix(_TREE)
        if not info.filename.startswith(_TREE) or info.is_dir():
            continue
        if not name or name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
            raise fail(f"it would write {name!r}, outside its folder")
        if name in wanted:
            raise fail(f"it holds {name!r} twice")
        wanted[name] = info
    return wanted


def _root() -> Path:
    """The checkout that this file lies in; the current folder where prune_jax is installed."""
    home = Path(__file__).resolve().parents[2]
    return home if (home / "pyproject.toml").is_file() else Path.cwd()


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("snapshot", __doc__)
    parser.add_argument("-m", "--message", metavar="TEXT", help="what the snapshot is of; it heads the readme")
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="the tree to save; without it, the checkout that prune_jax lies in, or this folder where it is installed",
    )
    parser.add_argument("--out", type=Path, default=Path("snapshots"), metavar="DIR", help="where it goes")
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
        print(save(args.root or _root(), args.out, args.message))
