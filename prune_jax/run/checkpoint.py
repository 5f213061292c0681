"""Saves and restores the last and the best state of a run, and the quantised network of some methods, by Orbax.

A run's checkpoints/ holds last/<n>, best/<n> and, for some methods, quantised/<n>. The number n counts the saves. It is
not the step, because one step may be saved twice: when a run stops in the middle of an epoch, and again at the epoch's
end. The earlier save has to stay until the later one is complete. The step is kept with the progress.

Two saves of `last` are kept. A save carries a hash per array, which every reader compares. Where the newest save is
damaged, the one before takes its place, with a warning.
"""

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prune_jax.errors import UserError, first_line
from prune_jax.pruning import packed, trees
from prune_jax.run import processes

Tree = Any


class _OrbaxChatter(logging.Filter):
    """Drops what Orbax logs below a warning: absl has one logger for everybody."""

    def filter(self, record):
        return record.levelno >= logging.WARNING or f"{os.sep}orbax{os.sep}" not in record.pathname


_QUIET = _OrbaxChatter()


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf):
    """The implementation of an abstract key. jax.random.key_impl takes keys only, so it gets a traced one."""
    seen = []
    jax.eval_shape(lambda key: seen.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return seen[0]


def _encode(state: Tree) -> Tree:
    """Replaces typed PRNG keys, which Orbax does not store, by their words, and packed gates by booleans."""
    state = packed.unpack(state)
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)


def _decode(leaf, value):
    """What was saved as `value` in the form of an abstract leaf, and where that lies."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(value, impl=_key_impl(leaf))
    if packed.is_packed(leaf):
        return processes.put(packed.pack(value, like=leaf), getattr(leaf.words, "sharding", None))
    return value


def _target(leaf) -> jax.ShapeDtypeStruct:
    """What Orbax restores for an abstract leaf, as _encode saves it; on the first device unless it names a sharding."""
    array = leaf.words if packed.is_packed(leaf) else leaf
    sharding = getattr(array, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if packed.is_packed(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, bool, sharding=packed.sharding(sharding, leaf.shape))
    words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)


def _signature(state: Tree) -> dict[str, str]:
    """The dtype and shape of each leaf as text, by its path. Orbax would cast a leaf of another dtype in silence."""

    def describe(leaf):
        return f"{jax.numpy.result_type(leaf)}{list(jax.numpy.shape(leaf))}"

    leaves = jax.tree_util.tree_leaves_with_path(packed.shapes(state))
    return {jax.tree_util.keystr(path): describe(leaf) for path, leaf in leaves}


class Checkpoints:
    """Saves and restores a run's state. A save that is cut short leaves the one before it in place.

    Saving is asynchronous: the arrays are copied before save_* returns, so they may be donated at once.
    """

    def __init__(self, directory):
        """Opens, or creates, the folder `directory`."""
        import orbax.checkpoint as ocp

        logger = logging.getLogger("absl")
        if _QUIET not in logger.filters:
            logger.addFilter(_QUIET)
        self._ocp = ocp
        self._directory = Path(os.path.abspath(directory))
        self._damaged: list[int] = []  # saves of "last" that restore_last passed over
        kept = {"last": 2}  # where the newest is damaged the one before takes its place

        def open_manager(kind):
            # Of several processes the managers meet in threads of their own: by other names, lest one's meet another's.
            apart = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=kind)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=kept.get(kind, 1), cleanup_tmp_directories=True, multiprocessing_options=apart
            )
            return ocp.CheckpointManager(self._directory / kind, options=options)

        try:
            self._open = open_manager
            self._managers = {kind: self._open(kind) for kind in ("last", "best")}
        except OSError as error:
            raise UserError(f"cannot use the checkpoints in {self._directory}: {error}") from error

    def save_last(self, step: int, state: Tree, progress: dict) -> None:
        """Saves the state after `step` steps. progress: JSON-serialisable, copied now."""
        self._save("last", step, state, progress)

    def save_best(self, step: int, state: Tree, progress: dict) -> None:
        """As save_last, to checkpoints/best."""
        self._save("best", step, state, progress)

    def save_quantised(self, step: int, network: Tree, progress: dict) -> None:
        """As save_last, of {"params", "gates"} alone, to checkpoints/quantised; read by read_network."""
        if "quantised" not in self._managers:
            self._managers["quantised"] = self._open("quantised")
        self._save("quantised", step, network, progress)

    def restore_last(self, abstract_state: Tree) -> tuple[Tree, dict]:
        """(state, progress) of the newest sound save_last. A warning tells of a newer one that is damaged.

        Args:
          abstract_state: the state's tree of jax.ShapeDtypeStruct (or of arrays); shapes, dtypes, key types and
            shardings are those of the result. A leaf without a sharding goes to the first device.
        Raises:
          UserError: there is no checkpoint, none can be read, or it is of another model or method.
        """
        manager = self._managers["last"]
        manager.wait_until_finished()
        numbers = sorted(manager.all_steps(), reverse=True)
        processes.check_same(f"the checkpoints that they see in {self._directory / 'last'}", str(numbers))
        (restored, progress), self._damaged = _newest_sound(
            self._directory / "last", numbers, lambda path: self._restore(path, abstract_state)
        )
        return jax.tree.map(_decode, abstract_state, restored, is_leaf=packed.is_packed), progress

    def _restore(self, path: Path, abstract_state: Tree) -> tuple[Tree, dict]:
        """(the encoded state, progress) of the checkpoint in `path`. Any error but a UserError says it is damaged.

        Of several processes one alone may meet the damage, in its part of an array: then it is damaged for all.
        """
        with processes.together(OSError):
            record = _read_record(path)
        saved, wanted = record["signature"], _signature(abstract_state)
        differing = [name for name in wanted | saved if wanted.get(name) != saved.get(name)]
        if differing:
            name = differing[0]
            raise UserError(
                f"the checkpoint {path} is of another model or method: {len(differing)} arrays differ, the first is "
                f"{name}: {saved.get(name, 'missing')} in the checkpoint, {wanted.get(name, 'missing')} in this run"
            )
        target = self._ocp.args.StandardRestore(jax.tree.map(_target, abstract_state, is_leaf=packed.is_packed))
        # The handler itself: the manager waits for all processes where one has failed.
        with contextlib.closing(self._ocp.StandardCheckpointHandler()) as handler, processes.together(OSError):
            restored = handler.restore(path / "state", args=target)
        with processes.together(OSError):  # which raises once all arrays are read, so in no process before another's
            _check_hashes(restored, record)
        return restored, record["progress"]

    def wait(self) -> None:
        """Blocks until everything saved is on disk. Raises what a save in the background ran into."""
        for manager in self._managers.values():
            manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then ends the background threads."""
        for manager in self._managers.values():
            manager.close()

    def _save(self, kind, step, state, progress):
        args, manager = self._ocp.args, self._managers[kind]
        encoded = _encode(state)
        record = {"step": int(step), "signature": _signature(state), "progress": _json_copy(progress)}
        record["hashes"] = {name: _hash(leaf) for name, leaf in trees.by_name(encoded).items()}
        number = (manager.latest_step() or 0) + 1
        if kind == "last":
            while self._damaged:  # else it would count as the one before, and the sound one would go
                manager.delete(self._damaged.pop())
        items = args.Composite(
            state=args.StandardSave(encoded), progress=args.JsonSave(record | {"hash": _record_hash(record)})
        )
        manager.save(number, args=items, force=True)


def read_network(directory, kind: str = "best") -> tuple[Tree, Tree]:
    """Reads the network of the newest sound checkpoint in `directory`/`kind`, whatever model it is of.

    A warning names a newer checkpoint that is damaged.

    Returns:
      (params, gates) as NumPy trees.
    Raises:
      UserError: there is no checkpoint, or none can be read.
    """
    folder = Path(os.path.abspath(directory)) / kind
    numbers = sorted((int(path.name) for path in folder.glob("*") if path.name.isdigit()), reverse=True)
    network, _ = _newest_sound(folder, numbers, _read_network)
    return network


def _read_network(path: Path) -> tuple[Tree, Tree]:
    import orbax.checkpoint as ocp

    # The handler itself: a Checkpointer warns of a file that only its own saves have.
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata(path / "state").tree
        wanted = {name: tree[name] for name in ("params", "gates")}
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        chosen = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
        restored = handler.restore(path / "state", args=chosen)
    _check_hashes(restored, _read_record(path))
    return restored["params"], restored["gates"]


# What makes a checkpoint sound ---------------------------------------------------------------------------------------


def _newest_sound(folder: Path, numbers: list[int], read: Callable[[Path], Any]) -> tuple[Any, list[int]]:
    """(what `read` makes of the first of these checkpoints that is sound, the numbers of the damaged ones before it).

    Raises:
      UserError: there is no checkpoint, or none is sound.
    """
    if not numbers:
        raise UserError(f"there is no checkpoint in {folder}")
    damaged: dict[int, str] = {}
    for number in numbers:
        try:
            result = read(folder / str(number))
        except UserError:
            raise
        except Exception as error:  # Orbax, TensorStore and a missing key each raise their own
            damaged[number] = first_line(error)[:300]
            continue
        for bad, reason in damaged.items():
            logging.getLogger("absl").warning(
                "the checkpoint %s cannot be read (%s); the one before it, %d, takes its place", folder / str(bad),
                reason, number,
            )  # fmt: skip
        return result, list(damaged)
    raise UserError(
        f"the checkpoint {folder / str(numbers[0])} cannot be read: {damaged[numbers[0]]}; move its run away, or "
        "choose another --workdir, to start anew"
    )


def _hash(leaf) -> int:
    """CRC-32 of an array's bytes: enough against what disks and copies do, at a fraction of their time.

    Of the whole array, however it is split, so that it can be read on any mesh.
    """
    return zlib.crc32(np.ascontiguousarray(processes.readable(leaf)).reshape(-1).view(np.uint8))


def _record_hash(record: dict) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _read_record(path: Path) -> dict:
    """The record that was saved with a checkpoint's arrays: step, signature, progress, hashes. OSError if damaged."""
    record = json.loads((path / "progress" / "metadata").read_text(encoding="utf-8"))
    if "hash" in record and record.pop("hash") != _record_hash(record):  # saves of before there were hashes have none
        raise OSError("its record of the run's progress is damaged")
    for name in ("step", "signature", "progress"):
        record[name]  # a KeyError says that it is damaged
    return record


def _check_hashes(tree: Tree, record: dict) -> None:
    """OSError for an array that is not as it was saved. Saves of before there were hashes have none to compare."""
    hashes = record.get("hashes", {})
    wrong = [name for name, leaf in trees.by_name(tree).items() if name in hashes and hashes[name] != _hash(leaf)]
    if wrong:
        raise OSError(f"{len(wrong)} arrays are not as they were saved, the first is {wrong[0]}")


def _json_copy(progress: dict) -> dict:
    """A copy in JSON's types, NumPy's as numbers and lists, made at once: the save goes on in the background."""
    return json.loads(json.dumps(progress, default=lambda x: x.tolist()))
