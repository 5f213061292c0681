"""The last and the best state of a run on disk, by Orbax, and the quantised network that some methods end with.

Under a run's checkpoints/ there are last/<n>, best/<n> and, where there is one, quantised/<n>, where n counts the
saves. It is not the step: the same step may be saved twice (at a stop in the middle of an epoch and, resumed, at the
epoch's end), and the earlier save has to stay until the later one is complete. The step is kept with the progress.
"""

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prune_jax.errors import UserError, first_line

Tree = Any


class _OrbaxChatter(logging.Filter):
    """Drops what Orbax says below a warning: absl has one logger for everybody, and prints info under app.run."""

    def filter(self, record):
        return record.levelno >= logging.WARNING or f"{os.sep}orbax{os.sep}" not in record.pathname


_QUIET = _OrbaxChatter()


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf):
    """The implementation of an abstract key leaf; jax.random.key_impl takes keys only, so it sees a traced one."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return found[0]


def _encode(state: Tree) -> Tree:
    """The state with the words of its typed PRNG keys, which Orbax does not store, in their place."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)


def _target(leaf) -> jax.ShapeDtypeStruct:
    """What Orbax is to restore for an abstract leaf: its words for a key, on the first device if it names none."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)


def _signature(state: Tree) -> dict[str, str]:
    """Each leaf's path, with its dtype and shape as text; Orbax itself casts a leaf of another dtype in silence."""

    def describe(leaf):
        return f"{jax.numpy.result_type(leaf)}{list(jax.numpy.shape(leaf))}"

    leaves = jax.tree_util.tree_leaves_with_path(state)
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
        options = ocp.CheckpointManagerOptions(max_to_keep=1, cleanup_tmp_directories=True)
        try:
            self._open = lambda kind: ocp.CheckpointManager(self._directory / kind, options=options)
            self._managers = {kind: self._open(kind) for kind in ("last", "best")}
        except OSError as error:
            raise UserError(f"cannot use the checkpoints in {self._directory}: {error}") from error
        self._steps: dict[str, int] = {}

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
        """(state, progress) of the newest complete save_last.

        Args:
          abstract_state: the state's tree of jax.ShapeDtypeStruct (or of arrays); shapes, dtypes, key types and
            shardings are those of the result. A leaf without a sharding goes to the first device.
        Raises:
          UserError: there is no checkpoint, it cannot be read, or it is of another model or method.
        """
        return self._restore("last", abstract_state)

    def restore_best(self, abstract_state: Tree) -> tuple[Tree, dict]:
        """As restore_last, of the newest save_best."""
        return self._restore("best", abstract_state)

    def latest_step(self) -> int | None:
        """The step of the newest save_last, None if there is none."""
        manager = self._managers["last"]
        if manager.latest_step() is None:
            return None
        if "last" not in self._steps:
            self._steps["last"] = self._read_record("last", manager.latest_step())["step"]
        return self._steps["last"]

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
        record = {"step": int(step), "signature": _signature(state), "progress": _json_copy(progress)}
        number = (manager.latest_step() or 0) + 1
        items = args.Composite(state=args.StandardSave(_encode(state)), progress=args.JsonSave(record))
        manager.save(number, args=items, force=True)
        self._steps[kind] = int(step)

    def _read_record(self, kind, number):
        args = self._ocp.args
        try:
            record = self._managers[kind].restore(number, args=args.Composite(progress=args.JsonRestore()))["progress"]
            return {name: record[name] for name in ("step", "signature", "progress")}
        except Exception as error:
            raise self._unreadable(kind, number, error) from error

    def _unreadable(self, kind, number, error) -> UserError:
        reason = first_line(error)
        return UserError(
            f"the checkpoint {self._directory / kind / str(number)} cannot be read: {reason[:300]}; "
            "move its run away, or choose another --workdir, to start anew"
        )

    def _restore(self, kind, abstract_state):
        args, manager = self._ocp.args, self._managers[kind]
        manager.wait_until_finished()
        number = manager.latest_step()
        if number is None:
            raise UserError(f"there is no checkpoint in {self._directory / kind}")
        record = self._read_record(kind, number)
        saved, wanted = record["signature"], _signature(abstract_state)
        differing = [name for name in wanted | saved if wanted.get(name) != saved.get(name)]
        if differing:
            name = differing[0]
            raise UserError(
                f"the checkpoint {self._directory / kind / str(number)} is of another model or method: "
                f"{len(differing)} arrays differ, the first is {name}: "
                f"{saved.get(name, 'missing')} in the checkpoint, {wanted.get(name, 'missing')} in this run"
            )
        target = jax.tree.map(_target, abstract_state)
        try:
            found = manager.restore(number, args=args.Composite(state=args.StandardRestore(target)))["state"]
        except Exception as error:
            raise self._unreadable(kind, number, error) from error

        def decode(leaf, restored):
            return jax.random.wrap_key_data(restored, impl=_key_impl(leaf)) if _is_key(leaf) else restored

        return jax.tree.map(decode, abstract_state, found), record["progress"]


def read_network(directory, kind: str = "best") -> tuple[Tree, Tree]:
    """(params, gates) as NumPy trees, of the newest checkpoint in `directory`/`kind`, whatever model it is of.

    Raises:
      UserError: there is no checkpoint, or it cannot be read.
    """
    import orbax.checkpoint as ocp

    folder = Path(os.path.abspath(directory)) / kind
    numbers = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not numbers:
        raise UserError(f"there is no checkpoint in {folder}")
    path = folder / str(max(numbers)) / "state"
    try:
        # The handler itself: a Checkpointer warns of a file that only its own saves have.
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            tree = handler.metadata(path).tree
            wanted = {name: tree[name] for name in ("params", "gates")}
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            found = handler.restore(path, args=ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True))
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"the checkpoint {path.parent} cannot be read: {reason[:300]}") from error
    return found["params"], found["gates"]


def _json_copy(progress: dict) -> dict:
    """A copy in JSON's types, NumPy's as numbers and lists; made at once, for the save goes on in the background."""
    return json.loads(json.dumps(progress, default=lambda x: x.tolist()))
