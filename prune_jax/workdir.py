"""The folder that a run writes: locked while it is in use, resumed or archived when it holds an earlier run."""

import atexit
import contextlib
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prune_jax import config as config_lib
from prune_jax.errors import UserError

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "transformers",
    "tokenizers",
    "datasets",
    "ml_collections",
)
PRETRAIN = "pretrain"  # the folder in a workdir of the dense run that it starts from
_locks: dict[Path, tuple[int, int]] = {}  # workdir -> (file descriptor, pid that took it)


def _plain(obj):
    """`obj` in JSON's own types: arrays and tuples as lists, non-finite floats as None, anything else as text."""
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if hasattr(obj, "tolist"):  # NumPy and JAX arrays and scalars
        return _plain(obj.tolist())
    return str(obj)


def write_bytes(path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path, text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path, obj) -> None:
    """Writes `obj` to `path` as JSON, whole or not at all. Non-finite floats become null, tuples and arrays lists."""
    write_text(path, json.dumps(_plain(obj), indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def write_folder(folder, replace: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` when the block ends well: whole or not at all.

    Args:
      replace: whether a folder that is there may go; without, only an empty one.
    Raises:
      UserError: it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            yield new
            if replace and folder.exists():
                os.rename(folder, old)
            try:
                os.rename(new, folder)
            except BaseException:
                if old.exists():
                    os.rename(old, folder)
                raise
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


def read_json(path):
    """The object in the JSON file `path`. UserError if it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error


def prepare(workdir, config_json: dict, log: Callable[[str], None] = lambda line: None) -> bool:
    """Makes `workdir` ready for a run of `config_json` and locks it for the life of this process.

    A folder of an earlier run is resumed if it is unfinished and of the same config; a key that is newer than the run
    has its default there. Any other run is zipped beside it as <name>_<YYYYmmdd-HHMMSS of its last change>.zip before
    the folder is emptied, and `log` is told why and where. A new run's config.json is written here, so that the folder
    is known for a run from its first file on.

    Returns:
      True to resume from checkpoints/last, False to start anew: in an empty folder, or in one that holds what the same
      config's pretraining has left.
    Raises:
      UserError: workdir is a file, cannot be written, is in use by another process, or holds something that is not a
        run of this program (it is left as it is).
    """
    # A link is followed, so that a workdir linked to another disk stays linked, and its archive goes to that disk.
    shown, workdir = workdir, Path(os.path.realpath(workdir))
    try:
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"the workdir {shown} is a file; choose a folder with --workdir")
        workdir.parent.mkdir(parents=True, exist_ok=True)
        _lock(workdir, shown)
        try:
            workdir.mkdir(exist_ok=True)
            if not any(workdir.iterdir()):
                write_json(workdir / "config.json", config_json)
                return False
            found = _run_config(workdir)
            if found is None or not found.keys() & _plain(config_json).keys():
                raise UserError(
                    f"the workdir {shown} holds files but not a run of this program (no config.json of one); nothing "
                    "in it was touched: choose another folder with --workdir"
                )
            begun = _has_checkpoint(workdir) or _has_checkpoint(workdir / PRETRAIN)
            differing = _differing(found, _plain(config_json))
            finished = (workdir / "summary.json").exists()
            if begun and not differing and not finished:
                return _has_checkpoint(workdir)
            archive = _archive(workdir)
            log(f"archived  the run that was in {shown} ({_reason(differing, finished)}): {archive}")
            write_json(workdir / "config.json", config_json)
            return False
        except BaseException:
            release(workdir)
            raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"cannot use the workdir {shown}: {error.strerror or error}{where}") from error


def _run_config(workdir: Path) -> dict | None:
    try:
        found = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _differing(found: dict, given: dict) -> list[str]:
    """The dotted keys in which two saved configs differ. A key that only one has is at its default in the other.

    Not by config.completed: `found` is whatever a file held, and need not fit a ConfigDict.
    """
    defaults = config_lib.leaves(_plain(config_lib.to_json(config_lib.default())))
    found, given = (defaults | config_lib.leaves(config) for config in (found, given))
    missing = object()
    return [key for key in found | given if found.get(key, missing) != given.get(key, missing)]


def _reason(differing: list[str], finished: bool) -> str:
    """Why a run is not resumed."""
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return f"its config differs in {', '.join(differing[:3])}{more}"
    return "it is finished" if finished else "it has no checkpoint"


def _has_checkpoint(workdir: Path) -> bool:
    # Orbax renames a finished checkpoint to its number; one that was being written has a longer name.
    last = workdir / "checkpoints" / "last"
    return last.is_dir() and any(entry.name.isdigit() and entry.is_dir() for entry in last.iterdir())


def _lock(workdir: Path, shown) -> None:
    if workdir in _locks:
        return
    path = workdir.parent / f".{workdir.name}.lock"  # beside the folder: it outlives the archiving
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise UserError(
                f"the workdir {shown} is in use by process {pid}; wait for it or choose another folder with --workdir"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)  # its owner removed the file between our open and our lock
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    _locks[workdir] = descriptor, os.getpid()


def release(workdir) -> None:
    """Gives up the lock that prepare took on `workdir`; it is given up at exit in any case."""
    workdir = Path(os.path.realpath(workdir))
    descriptor, pid = _locks.pop(workdir, (None, None))
    if descriptor is None:
        return
    if pid == os.getpid():  # a forked child must not remove its parent's lock
        (workdir.parent / f".{workdir.name}.lock").unlink(missing_ok=True)
    os.close(descriptor)


@atexit.register
def _release_all():
    for workdir in list(_locks):
        with contextlib.suppress(OSError):
            release(workdir)


def _entries(workdir: Path) -> dict[str, Path]:
    """Everything in `workdir` by its name in the archive (a folder's ends in /); links are not followed."""
    found = {}

    def fail(error):
        raise error

    for folder, folders, files in os.walk(workdir, onerror=fail):
        for name in folders + files:
            path = Path(folder) / name
            relative = f"{workdir.name}/{path.relative_to(workdir).as_posix()}"
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise UserError(f"cannot archive {path}: it is neither a file, a folder nor a link; remove it first")
            found[relative + "/" if stat.S_ISDIR(mode) else relative] = path
    return found


def _archive(workdir: Path) -> Path:
    """Zips the run beside its folder, verifies the zip, then empties the folder. Returns the zip's path."""
    import zipfile

    before = _entries(workdir)
    changed = max((path.lstat().st_mtime for path in before.values()), default=time.time())
    stem = f"{workdir.name}_{time.strftime('%Y%m%d-%H%M%S', time.localtime(changed))}"
    target = workdir.parent / f"{stem}.zip"
    suffix = 1
    while os.path.lexists(target):
        suffix += 1
        target = workdir.parent / f"{stem}_{suffix}.zip"
    partial = workdir.parent / f".{workdir.name}.zip.partial"  # one name only: the next archive replaces a killed one
    try:
        partial.unlink(missing_ok=True)
        with open(partial, "xb") as file:
            with zipfile.ZipFile(file, "w", strict_timestamps=False) as archive:
                for name, path in before.items():
                    if path.is_symlink():  # stored as a link; ZipInfo.from_file would follow it
                        info = zipfile.ZipInfo(name)
                        info.external_attr = (stat.S_IFLNK | 0o777) << 16
                        archive.writestr(info, os.fsencode(os.readlink(path)))
                        continue
                    info = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
                    if name.endswith("/"):
                        archive.writestr(info, b"")
                    else:
                        # Checkpoints and images are compressed already.
                        packed = "checkpoints" in path.parts or path.suffix == ".png"
                        info.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
                        with open(path, "rb") as source, archive.open(info, "w", force_zip64=True) as sink:
                            shutil.copyfileobj(source, sink, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        _verify(partial, workdir)
        os.replace(partial, target)
        _sync_folder(workdir.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # config.json goes last: a folder whose emptying was cut short is still known for a run. The folder itself stays,
    # for it may be a mount point or someone's current directory.
    for path in sorted(workdir.iterdir(), key=lambda path: path.name == "config.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return target


def _verify(archive_path: Path, workdir: Path) -> None:
    """OSError unless the zip is sound and lists what the folder holds now, with its sizes."""
    import zipfile

    with zipfile.ZipFile(archive_path) as archive:
        broken = archive.testzip()
        listed = {info.filename: info.file_size for info in archive.infolist()}
    held = {name: 0 if name.endswith("/") else path.lstat().st_size for name, path in _entries(workdir).items()}
    if broken is not None or listed != held:
        raise OSError(f"its archive came out wrong ({broken or 'another list of files'}); the folder was left as it is")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def provenance(device: str | None = None) -> dict:
    """What it takes to repeat a run: source commit, command line, versions; `device` is whatever the caller says.

    Returns:
      {commit, dirty, command, python, platform, device, versions}. commit and dirty are None outside a git checkout of
      this package, a version is None where the package is not installed.
    """
    folder = Path(__file__).resolve().parent

    def git(*args):
        done = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=20, check=True, errors="replace"
        )
        return done.stdout.strip()

    commit = dirty = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", "__init__.py")  # installed inside some other project's checkout: not ours
        commit, dirty = git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))

    def version(package):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "commit": commit,
        "dirty": dirty,
        "command": list(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "versions": {package: version(package) for package in _PACKAGES},
    }
