"""A job of several processes (jax.distributed): how they find each other, and what a run asks of them.

Each process runs the same program on the same data and config, and owns some of the devices. Arrays are global: a step
is one step of the whole job. The first process writes. A mistake that one of them finds ends all. In a job of a single
process, which every run is that was not started otherwise, each function here does what its first line says, no more.
"""

import contextlib
import itertools
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prune_jax.errors import LeftAlone, Stopped, UserError, first_line

Tree = Any

FOUND = "auto"  # config.distributed.coordinator: what jax finds in the environment
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # how many tasks srun or mpirun has started
_WORKERS = "TPU_WORKER_HOSTNAMES"  # of a TPU's slice, separated by commas
_LEAVE = 60  # seconds that a process waits for the others when it ends
_PATIENCE = 24 * 3600  # seconds to wait where one process alone has work, as zipping an earlier run
_TEXT = 2000  # bytes of a message between processes
# What jax raises where a process does not answer: of collectives on processors and on GPUs, and of its coordinator.
_UNANSWERED = re.compile("gloo|nccl|coordination|barrier|heartbeat|closed by peer|reset by peer", re.IGNORECASE)
_meetings = itertools.count()


# Finding each other --------------------------------------------------------------------------------------------------


def found(environ: Mapping[str, str]) -> bool:
    """Whether the environment tells of a job of several processes; an allocation alone, as of sbatch, does not.

    Example:
      >>> found({"SLURM_NTASKS": "2"}), found({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"})
      (False, True)
    """
    tasks = (environ.get(name, "") for name in _TASKS)
    return any(n.isdecimal() and int(n) > 1 for n in tasks) or "," in environ.get(_WORKERS, "")


def join(distributed: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Joins the job that config.distributed names or the environment tells of, before jax looks for devices.

    Raises:
      UserError: jax has looked for devices already, or the others are not there.
    """
    given = distributed.coordinator
    if jax.distributed.is_initialized() or not (given or found(environ)):
        return
    arguments: dict[str, Any] = {"shutdown_timeout_seconds": _LEAVE}
    if given not in ("", FOUND):
        arguments |= {"coordinator_address": given, "cluster_detection_method": "deactivate"}
        arguments |= {"num_processes": distributed.num_processes, "process_id": distributed.process_id}
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"config.distributed.coordinator is {given!r}, and this process cannot join the job: {first_line(error)}"
        ) from error


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether the job has more processes than this one."""
    return jax.process_count() > 1


# Arrays --------------------------------------------------------------------------------------------------------------


def put(tree: Tree, at: Any = None) -> Tree:
    """Puts a tree where the shardings `at` say, as jax.device_put does; each process sends to its own devices alone.

    Args:
      tree: of arrays that are the same in every process, or that are spread over all devices already.
      at: a sharding, or a tree of them that `tree` begins with; None, the default device of this process.
    """
    if at is None or not several():
        return jax.device_put(tree, at)

    def one(x: Any, at: Any) -> jax.Array:
        if _is_spread(x):
            return jax.device_put(x, at)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, at, lambda index: x[index])

    return jax.tree.map(one, tree, jax.tree.broadcast(at, tree))


def readable(tree: Tree) -> Tree:
    """The tree as it is; with several processes, which all call this, NumPy copies of arrays that they hold parts of.

    One array at a time is put together on the devices.
    """

    def one(x: Any) -> Any:
        if not _is_spread(x):
            return x
        return np.asarray(x if x.is_fully_replicated else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(one, tree)


def same(tree: Tree) -> Tree:
    """The tree as it is; with several processes the first one's, where each has computed it on its own."""
    leaves, treedef = jax.tree.flatten(tree)
    own = {i: x for i, x in enumerate(leaves) if not _is_spread(x)}
    if not several() or not own:
        return tree
    meet()
    sent = multihost_utils.broadcast_one_to_all(own)
    return jax.tree.unflatten(treedef, [sent.get(i, x) for i, x in enumerate(leaves)])


def _is_spread(x: Any) -> bool:
    """Whether an array lies on devices of other processes, too."""
    return isinstance(x, jax.Array) and not x.is_fully_addressable


# Words ---------------------------------------------------------------------------------------------------------------


def meet() -> None:
    """Waits for all processes; nothing where there is one. Collectives would give up sooner (gloo's after 30 s)."""
    if several():
        import orbax.checkpoint as ocp

        barrier = ocp.multihost.get_barrier_sync_fn()
        barrier(key=f"prune_jax_{next(_meetings)}", timeout_ms=1000 * _PATIENCE)


def _told(text: str) -> list[str]:
    """What every process says, in their order."""
    meet()
    own, said = np.zeros(_TEXT, np.uint8), text.encode()[:_TEXT]
    own[: len(said)] = np.frombuffer(said, np.uint8)
    rows = multihost_utils.process_allgather(own)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in np.asarray(rows)]


@contextlib.contextmanager
def together(kind: type[Exception] = UserError) -> Iterator[None]:
    """Lets an exception that the block raises in one process end it in all, which compute nothing together in it.

    Args:
      kind: of the exception where another process has failed; its text is that of the other's.
    """
    if not several():
        yield
        return
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    told = _told("" if problem is None else str(problem) or type(problem).__name__)
    if problem is not None:
        raise problem
    for number, text in enumerate(told):
        if text:
            raise kind(f"process {number} of {len(told)}: {text}")


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Waits for all processes after the block, if it ends well or by a Stopped, which all raise after the same step.

    One that left at once would end the first, which may have files and sinks to close, after _LEAVE seconds.

    Raises:
      LeftAlone: another process has ended, and jax has told so; it may also wait, and then end this one itself.
    """
    try:
        yield
    except Stopped:
        meet()
        raise
    except jax.errors.JaxRuntimeError as error:
        if not several() or not _UNANSWERED.search(str(error)):
            raise
        raise LeftAlone(
            f"another process of this job has ended or does not answer ({first_line(error)[:120]}); what was saved is "
            "in order, and the same commands go on from there"
        ) from error
    meet()


def first_says(act: Callable[[], bool]) -> bool:
    """What `act` returns; with several processes it acts in the first one alone, and an exception there ends all."""
    if not several():
        return act()
    answer = False
    with together():
        answer = first() and act()
    return bool(_told("yes" if answer else "")[0])


def in_all(holds: bool) -> bool:
    """Whether something holds in every process."""
    return holds if not several() else all(_told("yes" if holds else ""))


def check_same(what: str, text: str) -> None:
    """UserError where the processes have other texts from each other, as configs are."""
    if several() and len(set(_told(f"{zlib.crc32(text.encode())}"))) > 1:
        raise UserError(f"the {jax.process_count()} processes of this job differ in {what}; start all of them alike")


class Requests:
    """Signals that ask a run to stop, as all processes know them after the same step."""

    def __init__(self, own: list[int]):
        """Takes the list that catch_stop_requests fills."""
        self._own = own
        self._vote: jax.Array | None = None
        if several():
            mesh = Mesh(jax.devices(), "all")
            self._parts = NamedSharding(mesh, PartitionSpec("all"))
            self._most = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def heard(self) -> int:
        """The number of the first signal; 0, none. With several processes, what any had heard one call before.

        So no step waits for the answer: it was under way beside the step before.
        """
        own = self._own[0] if self._own else 0
        if not several():
            return own
        ballots = jax.make_array_from_callback(
            (jax.device_count(),), self._parts, lambda index: np.full(1, own, np.int32)
        )
        before, self._vote = self._vote, self._most(ballots)
        return 0 if before is None else int(before)
