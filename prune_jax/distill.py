"""Distillation: a teacher adds its soft targets to the training loss of any method.

The loss of a batch becomes

  (1 - weight) * hard + weight * soft,   soft = T^2 * KL(softmax(teacher / T) || softmax(student / T)),

the mean over its rows (Hinton et al., 2015, arXiv:1503.02531); T^2 keeps the gradient's scale as T grows. A regression
task's soft loss is the squared difference of the scores. The teacher's logits over the training set are computed once,
without dropout, kept beside the token cache, and travel in the batch by example.

`hidden_weight` and `attention_weight` add mean squared differences of the layers' outputs and of their attention
scores before the softmax (Jiao et al., 2020, arXiv:1909.10351, without its projections: the widths, or the heads, are
the same). The teacher has as many layers as the student, or k times as many: student layer i learns from teacher layer
k * (i + 1) - 1. Both need the teacher in the step, where its weights are an argument.

What SPT explores stays the hard loss.
"""

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax import config as config_lib
from prune_jax import data as data_lib
from prune_jax import evaluate, keys, models, runs, trees
from prune_jax import state as state_lib
from prune_jax.data import batching, tokenizer
from prune_jax.errors import UserError
from prune_jax.models import hf

Tree = Any
LOGITS = "teacher_logits"  # of a batch


class Teacher(NamedTuple):
    """model: a network as train.py asks for; variables: {"params", "gates"} of NumPy arrays, gates only of a run."""

    model: Any
    variables: dict[str, Tree]


class Taught(NamedTuple):
    """A split (prune_jax.data.batching) whose batches carry the teacher's logits, (n, num_labels) float32."""

    split: Any
    logits: np.ndarray

    def __len__(self) -> int:  # of examples; a NamedTuple would count its fields
        return len(self.split)

    @property
    def labels(self) -> np.ndarray:
        return self.split.labels

    @property
    def lengths(self) -> np.ndarray:
        return self.split.lengths

    def take(self, rows: np.ndarray) -> "Taught":
        """The examples `rows`, in that order."""
        return Taught(self.split.take(rows), self.logits[rows])

    def batch(self, rows: np.ndarray, length: int, batch_size: int) -> batching.Batch:
        """The split's own batch, and teacher_logits (batch_size, num_labels) float32, 0 where filled up."""
        logits = np.zeros((batch_size, self.logits.shape[1]), np.float32)
        logits[: len(rows)] = self.logits[rows]
        return {**self.split.batch(rows, length, batch_size), LOGITS: logits}


# The teacher ---------------------------------------------------------------------------------------------------------


def _fail(config, problem: str) -> UserError:
    return UserError(f"config.distill.teacher={config.distill.teacher!r} cannot teach this run: {problem}")


def _read(config, task):
    """(the teacher's config, its params, its gates, its tokenizer's name)."""
    source = config.distill.teacher
    if runs.is_run(source):
        saved, params, gates = runs.load(source, config.distill.checkpoint)
        found = config_lib.completed(saved)
        if found.data.task != config.data.task:
            raise _fail(config, f"its task is {found.data.task}, and config.data.task is {config.data.task}")
        tok = Path(source) / "tokenizer"
        return found, params, gates, str(tok) if tok.is_dir() else ""
    if keys.MODELS[config.model.name] != "text":
        raise _fail(config, f"allowed: the folder of a run with images, as config.model.name={config.model.name} has")
    try:
        geometry, tok = hf.read_config(source), hf.tokenizer(source)
        params, note = hf.load_for(source, task.labels)
    except UserError as error:
        raise UserError(str(error).replace("config.model.init_from", "config.distill.teacher")) from error
    if note and "classifier" not in params:
        raise _fail(config, note)
    found = config.copy_and_resolve_references()
    with found.unlocked(), found.model.ignore_type():
        found.model.update(geometry)
    return found, params, {}, tok


def load(config, dataset) -> Teacher | None:
    """The teacher that a resolved config names, None if it names none.

    Raises:
      UserError: there is none, or it is of another task, or reads other tokens, or lacks the layers that are asked for.
    """
    if not config.distill.teacher:
        return None
    task = dataset.task
    found, params, gates, tok_name = _read(config, task)
    with found.unlocked():
        found.model.dtype = config.model.dtype
    if "token_embedding" in params:
        if dataset.tokenizer is None:
            raise _fail(config, f"it reads text, and {task.name} is of images")
        positions, longest = params["position_embedding"]["embedding"].shape[0], dataset.buckets[-1]
        if positions < longest:
            raise _fail(config, f"it has {positions} positions, and this run's texts are padded to {longest}")
        if tok_name:
            with found.unlocked():
                found.data.tokenizer = tok_name
            theirs = tokenizer.load(found.data, []).backend.get_vocab()
            if theirs != dataset.tokenizer.backend.get_vocab():
                raise _fail(config, f"its tokenizer has another vocabulary ({len(theirs):,} tokens) than this run's")
    rows = params["token_embedding"]["embedding"].shape[0] if "token_embedding" in params else None
    model = models.create(found, task, rows)
    wanted = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["params"]
    if differs := trees.differing(params, wanted):
        name, (theirs, ours) = next(iter(differs.items()))
        raise _fail(config, f"{name} is {theirs} there, and {task.name} makes it {ours}")
    _check_layers(config, model)
    return Teacher(model, {"params": params} | ({"gates": gates} if gates else {}))


def _check_layers(config, model) -> None:
    cfg, student = config.distill, config.model
    for key, name in (("hidden_weight", "d_model"), ("attention_weight", "num_heads")):
        if not cfg[key]:
            continue
        if keys.MODELS[student.name] != "text":
            raise UserError(f"config.distill.{key} is {cfg[key]:g}; allowed: 0 with config.model.name={student.name}")
        theirs = getattr(model.cfg, name)
        if theirs != student[name]:
            raise _fail(config, f"config.distill.{key} needs the same {name}: {theirs} there, {student[name]} here")
        if model.cfg.num_layers % student.num_layers:
            layers = f"{model.cfg.num_layers} there, {student.num_layers} here"
            raise _fail(config, f"config.distill.{key} needs as many layers, or a multiple: {layers}")
        if key == "attention_weight" and (model.cfg.layer_heads or student.layer_heads):
            raise _fail(config, f"config.distill.{key} needs layers that have all their heads")


# Its logits ----------------------------------------------------------------------------------------------------------


def _fingerprint(teacher: Teacher, split) -> str:
    """A hash of all that decides the logits."""
    digest = hashlib.sha256(repr(teacher.model).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path((teacher.variables, tuple(split))):
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.data)
    return digest.hexdigest()


def _read_cache(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logging.getLogger("absl").warning("%s cannot be read (%s); asking the teacher again", path, error)
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None


def _write_cache(path: Path, logits: np.ndarray) -> None:
    """Whole or not at all; a cache that cannot be written costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            np.save(Path(scratch) / path.name, logits)
            os.replace(Path(scratch) / path.name, path)
    except OSError as error:
        logging.getLogger("absl").warning("cannot write the teacher's logits to %s: %s", path, error)


def teach(teacher: Teacher, config, dataset, sharding=None) -> tuple[Any, str]:
    """(the dataset with a Taught training split, a line that says how good the teacher is there)."""
    split, task = dataset.train, dataset.task
    path = data_lib.cache_folder(config.data) / "teacher" / f"{_fingerprint(teacher, split)}.npy"
    logits = _read_cache(path, (len(split), task.num_labels))
    how = "from the cache" if logits is not None else "computed"
    if logits is None:
        variables = jax.device_put(teacher.variables)
        step = jax.jit(state_lib.make_eval_step(teacher.model))
        eval_step = functools.partial(step, variables["params"], variables.get("gates", {}))
        size = -(-config.train.eval_batch_size // jax.device_count()) * jax.device_count()
        batches = batching.eval_batches(split, size, dataset.buckets)
        logits, _ = evaluate.outputs(eval_step, task, split, batches, sharding)
        _write_cache(path, logits)
    name = task.metrics[0]
    score = evaluate.metrics(task, logits, split.labels)[name]
    line = f"teacher   {config.distill.teacher}: {name} {score:.4f} on the training examples; logits {how}"
    return dataset._replace(train=Taught(split, logits)), line


# The loss ------------------------------------------------------------------------------------------------------------


def soft_losses(logits: jax.Array, targets: jax.Array, temperature: float, regression: bool) -> jax.Array:
    """(batch,) float32: T^2 * KL(teacher || student) in nats at temperature T, or the scores' squared difference.

    Args:
      logits, targets: (batch, num_labels) float32, of the student and of the teacher.
    """
    if regression:
        return jnp.square(logits[:, 0] - targets[:, 0])
    ours, theirs = (jax.nn.log_softmax(x / temperature) for x in (logits, targets))
    return temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


def _mean_square(ours: list[jax.Array], theirs: list[jax.Array], mask: jax.Array) -> jax.Array:
    """The mean squared difference over the layers and over the entries where mask, which broadcasts, is 1."""
    every = len(theirs) // len(ours)
    total = sum(
        jnp.sum(jnp.square((a - b).astype(jnp.float32)) * mask)
        for a, b in zip(ours, theirs[every - 1 :: every], strict=True)
    )
    return total / jnp.maximum(len(ours) * jnp.sum(jnp.broadcast_to(mask, ours[0].shape)), 1)


def training_loss(cfg, teacher: Teacher) -> Callable:
    """The loss in the place of state.batch_loss for a training step, of config.distill.

    (model, params, gates, batch, dropout_key, variables of the teacher or None) -> () float32; the batch has
    teacher_logits, and the variables are read only where in_step(cfg).
    """

    def loss(model, params, gates, batch, dropout_key, variables):
        weights = batch["weights"]
        capture = in_step(cfg)
        found = state_lib.apply(model, params, gates, batch, dropout_key, capture)
        logits, layers = found if capture else (found, None)
        hard = state_lib.example_losses(logits, batch["labels"], model.regression)
        soft = soft_losses(logits, batch[LOGITS], cfg.temperature, model.regression)
        losses = (1 - cfg.weight) * hard + cfg.weight * soft
        total = jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1)
        if not capture:
            return total
        _, taught = state_lib.apply(teacher.model, variables["params"], variables.get("gates", {}), batch, None, True)
        tokens = batch["attention_mask"] * weights[:, None]
        if cfg.hidden_weight:
            total += cfg.hidden_weight * _mean_square(layers["hidden"], taught["hidden"], tokens[:, :, None])
        if cfg.attention_weight:
            pairs = tokens[:, None, :, None] * tokens[:, None, None, :]
            total += cfg.attention_weight * _mean_square(layers["attention"], taught["attention"], pairs)
        return total

    return loss


def in_step(cfg) -> bool:
    """Whether config.distill needs the teacher in the training step."""
    return bool(cfg.hidden_weight or cfg.attention_weight)


def changes_loss(cfg) -> bool:
    """Whether anything of config.distill enters the loss."""
    return bool(cfg.teacher) and bool(cfg.weight or in_step(cfg))
