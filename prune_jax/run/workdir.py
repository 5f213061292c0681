"""The folder that a run writes: locked while it is in use, resumed or archived when it holds an earlier run."""

import atexit
import contextlib
import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from prune_jax import files
from prune_jax.config import keys, saved
from prune_jax.errors import Stopped, UserError, first_line
from prune_jax.files import plain, write_json
from prune_jax.run import continuing

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


class _Earlier(NamedTuple):
    """What a workdir holds of an earlier run.

    Attributes:
      goes_on: whether the run is unfinished and of the same config, so that it is not to be archived.
      resumes: whether it also has a checkpoint of its own to go on from.
      why_not: why it does not go on.
    """

    goes_on: bool
    resumes: bool
    why_not: str


def _earlier(workdir: Path, shown, config_json: dict, data: str, networks: Mapping[str, str]) -> _Earlier | None:
    """What is in an existing workdir; None if it is empty. UserError if it holds something that is not a run."""
    if not any(workdir.iterdir()):
        return None
    given, earlier = plain(config_json), _run_config(workdir)
    if earlier is None or not earlier.keys() & given.keys():
        raise UserError(
            f"the workdir {shown} holds files but not a run of this program (no config.json of one); nothing "
            "in it was touched: choose another folder with --workdir"
        )
    method = given.get("pruning", {}).get("method", "")
    differing = [key for key in saved.differing(earlier, given) if keys.matters(key, method)]
    finished, resumes = (workdir / "summary.json").exists(), _has_checkpoint(workdir)
    begun = resumes or _has_checkpoint(workdir / PRETRAIN)
    differing = continuing.without_moved_data(workdir, differing, data)
    changed = continuing.why_not_same(workdir, data, networks)
    longer = "train.epochs" in differing and not set(differing) - {"train.epochs", "pruning.end_epoch"}
    if longer and begun:
        why_not = continuing.why_not_longer(workdir, earlier, given) or changed
        if not why_not:
            return _Earlier(True, resumes, "")
        return _Earlier(False, False, f"its config differs in train.epochs, and it cannot go on to others: {why_not}")
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return _Earlier(False, False, f"its config differs in {', '.join(differing[:3])}{more}")
    if finished or not begun:
        return _Earlier(False, False, "it is finished" if finished else "it has no checkpoint")
    if changed:
        return _Earlier(False, False, changed)
    return _Earlier(True, resumes, "")


def resumes(workdir, config_json: dict, data: str = "", networks: Mapping[str, str] = MappingProxyType({})) -> bool:
    """Whether prepare would resume the run in `workdir`. Reads alone, so that inputs can be checked before it acts.

    Args:
      config_json, data, networks: as prepare's.
    Raises:
      UserError: workdir is a file, cannot be read, or holds something that is not a run of this program.
    """
    shown, workdir = workdir, Path(os.path.realpath(workdir))
    try:
        if not workdir.exists():
            return False
        if not workdir.is_dir():
            raise UserError(f"the workdir {shown} is a file; choose a folder with --workdir")
        earlier = _earlier(workdir, shown, config_json, data, networks)
        return earlier is not None and earlier.resumes
    except OSError as error:
        raise _unusable(shown, error) from error


def prepare(
    workdir,
    config_json: dict,
    log: Callable[[str], None] = lambda line: None,
    data: str = "",
    networks: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Makes `workdir` ready for a run of `config_json` and locks it for the life of this process.

    A folder of an earlier run is resumed if the run is unfinished and of the same config. A key that is newer than the
    run has its default there, and a key that no result depends on may have changed; config.json follows it. So may the
    number of epochs where the schedules allow it, also of a finished run, and where the same data lies. A run whose
    data hold other examples now, or that started or learns from a network that is another now, does not go on. Any
    other run is zipped beside its folder as <name>_<YYYYmmdd-HHMMSS of its last change>.zip before the folder is
    emptied, and `log` is told why and where. A new run's config.json is written here, so that the folder is known for a
    run from its first file on.

    Args:
      data: continuing.fingerprint of the run's data; "", unknown.
      networks: continuing.networks of its config.
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
        lock(workdir, shown)
        try:
            workdir.mkdir(exist_ok=True)
            earlier = _earlier(workdir, shown, config_json, data, networks)
            if earlier is not None and not earlier.goes_on:
                archive = _archive(workdir)
                log(f"archived  the run that was in {shown} ({earlier.why_not}): {archive}")
            (workdir / "summary.json").unlink(missing_ok=True)  # of a finished run that goes on to more epochs
            if _run_config(workdir) != plain(config_json):
                write_json(workdir / "config.json", config_json)
            if data:
                continuing.note_inputs(workdir, data, networks)
            return earlier is not None and earlier.resumes
        except BaseException:
            release(workdir)
            raise
    except OSError as error:
        raise _unusable(shown, error) from error


def _unusable(shown, error: OSError) -> UserError:
    where = f" ({error.filename})" if error.filename else ""
    return UserError(f"cannot use the workdir {shown}: {error.strerror or error}{where}")


def _run_config(workdir: Path) -> dict | None:
    """What the workdir's config.json holds; None if there is none, or no JSON object in it."""
    try:
        content = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _has_checkpoint(workdir: Path) -> bool:
    # Orbax renames a finished checkpoint to its number; one that was being written has a longer name.
    last = workdir / "checkpoints" / "last"
    return last.is_dir() and any(entry.name.isdigit() and entry.is_dir() for entry in last.iterdir())


def lock(workdir: Path, shown, flag: str = "--workdir") -> None:
    """Locks a folder for the life of this process, or until `release`; it need not exist yet, its parent must.

    Args:
      workdir: its real path; shown: as the user gave it, by `flag`.
    Raises:
      UserError: another process has it.
    """
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
                f"the {'workdir' if flag == '--workdir' else 'folder'} {shown} is in use by process {pid}; wait for it "
                f"or choose another folder with {flag}"
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL):
                raise
            logging.getLogger("absl").warning(
                "the file system of %s has no locks (%s): see to it yourself that no other run writes there",
                shown,
                error.strerror,
            )
            path.unlink(missing_ok=True)
            return
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


@contextlib.contextmanager
def room(workdir: Path):
    """Turns whatever becomes of a run on a full disk, in any library, into one message."""
    try:
        yield
    except (UserError, Stopped):
        raise
    except Exception as error:
        if not files.lacks_room(error):
            raise
        raise Stopped(
            f"the disk of {workdir} is full, or a quota is used up ({first_line(error)[:200]}); what was saved is "
            "whole, and the same command resumes the run once there is room",
            exit_code=1,
        ) from error


def _entries(workdir: Path) -> dict[str, Path]:
    """Everything in `workdir` by its name in the archive (a folder's ends in /); links are not followed."""
    entries = {}

    def fail(error):
        raise error

    for folder, folders, names in os.walk(workdir, onerror=fail):
        for name in folders + names:
            path = Path(folder) / name
            relative = f"{workdir.name}/{path.relative_to(workdir).as_posix()}"
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise UserError(f"cannot archive {path}: it is neither a file, a folder nor a link; remove it first")
            entries[relative + "/" if stat.S_ISDIR(mode) else relative] = path
    return entries


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
    folder = Path(__file__).resolve().parents[1]

    def git(*args):
        done = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=20, check=True, errors="replace"
        )
        return done.stdout.strip()

    commit = dirty = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", "__init__.py")  # installed inside some other project's checkout: not ours
        commit, dirty = (
            git("rev-parse", "HEAD"),
            bool(
                # What a run writes beside itself, its lock or mlruns/, is no change of the source.
                git("status", "--porcelain", "--untracked-files=no") or git("status", "--porcelain", "--", str(folder))
            ),
        )

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
