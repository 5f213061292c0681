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

With `hidden_match=nearest` it is four of the teacher's layers, evenly spaced, that each teach the student's layer whose
output, through one linear map, is nearest on the batch (Xia et al., 2022, arXiv:2204.00408, section 3.2): pruning
decides which layer does whose work. The map starts as the identity, is trained with the weights, and belongs to the
method's leaves. A closed layer passes its input on, so it stands for the layer before it.

What SPT explores stays the hard loss.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax import models
from prune_jax.config.rooms import MODELS
from prune_jax.data import batching, cache
from prune_jax.data.glue import LANGUAGE, task_of
from prune_jax.errors import UserError
from prune_jax.export import decoder, hf
from prune_jax.pruning import trees
from prune_jax.pruning.method import Method
from prune_jax.run import evaluate, fitting, initial, mesh, processes
from prune_jax.run import folder as runs
from prune_jax.run import state as state_lib

Tree = Any
LOGITS = "teacher_logits"  # of a batch


class Teacher(NamedTuple):
    """A network that teaches.

    Attributes:
      model: as models.create gives it.
      variables: {"params", "gates"} of NumPy arrays, gates only of a run.
      note: how its classifier was read, for the log; "" where its classes have names.
    """

    model: Any
    variables: dict[str, Tree]
    note: str = ""


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


def _what(config) -> str:
    return f"config.distill.teacher={config.distill.teacher!r}"


def _fail(config, problem: str) -> UserError:
    return UserError(f"{_what(config)} cannot teach this run: {problem}")


def _read(config, task):
    """(the teacher's config, its params, its gates, its tokenizer's name, whether its outputs lack names)."""
    source = config.distill.teacher
    if runs.is_run(source):
        network = initial.read(source, config.distill.checkpoint, task.labels)
        theirs, tok = network.config, Path(source) / "tokenizer"
        # By the tables' names: with the built-in source a GLUE task's name stands for a task of other classes.
        if (name := task_of(theirs.data).name) != task.name:
            raise _fail(config, f"its task is {name}, and this run's is {task.name}")
        return theirs, network.params, network.gates, str(tok) if tok.is_dir() else "", False
    kind = MODELS[config.model.name]
    if kind == "images":
        raise _fail(config, f"allowed: the folder of a run with images, as config.model.name={config.model.name} has")
    try:
        if kind == LANGUAGE:
            geometry, found = decoder.model_keys(Path(source)), hf.Loaded(decoder.load(Path(source))[1])
        else:
            geometry, found = hf.read_config(source), hf.load_for(source, task.labels)
        tok = hf.tokenizer(source)
        initial.check_finite(source, found.params)
    except UserError as error:
        raise UserError(str(error).replace("config.model.init_from", "config.distill.teacher")) from error
    if found.note and not found.params.keys() & set(models.HEADS):
        raise _fail(config, found.note)
    its_config = config.copy_and_resolve_references()
    with its_config.unlocked(), its_config.model.ignore_type():
        its_config.model.update(geometry)
    return its_config, found.params, {}, tok, found.unnamed


def load(config, dataset, label_names: tuple[str, ...] | None = None) -> Teacher | None:
    """The teacher that a resolved config names, None if it names none.

    Args:
      label_names: config.data's as the user has set it, which decides where a checkpoint names no classes and training
        examples do not tell.
    Raises:
      UserError: there is none, or it is of another task, or reads other tokens, or lacks the layers that are asked for.
    """
    if not config.distill.teacher:
        return None
    task = dataset.task
    its_config, params, gates, tok_name, unnamed = _read(config, task)
    with its_config.unlocked():
        its_config.model.dtype = config.model.dtype
    sizes = models.text_sizes(params)
    if sizes:
        if dataset.tokenizer is None:
            raise _fail(config, f"it reads text, and {task.name} is of images")
        positions, longest = sizes[1], dataset.buckets[-1]
        if positions < longest:
            raise _fail(config, f"it has {positions} positions, and this run's texts are padded to {longest}")
        fitting.check_tokens(_what(config), tok_name, sizes[0], dataset.tokenizer)
    model = models.create(its_config, task, sizes and sizes[0])
    wanted = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["params"]
    if differs := trees.differing(params, wanted):
        name, (theirs, ours) = next(iter(differs.items()))
        raise _fail(config, f"{name} is {theirs} there, and {task.name} makes it {ours}")
    _check_layers(config, model)
    note = ""
    if unnamed:
        size = config.train.eval_batch_size
        order, note = fitting.class_order(_what(config), model, params, dataset, size, label_names)
        params = hf.with_head(params, model.head, order)
    return Teacher(model, {"params": params} | ({"gates": gates} if gates else {}), note)


def _check_layers(config, model) -> None:
    cfg, student = config.distill, config.model
    for key, name in (("hidden_weight", "d_model"), ("attention_weight", "num_heads")):
        if not cfg[key]:
            continue
        if MODELS[student.name] == "images":
            raise UserError(f"config.distill.{key} is {cfg[key]:g}; allowed: 0 with config.model.name={student.name}")
        theirs = getattr(model.cfg, name)
        if theirs != student[name]:
            raise _fail(config, f"config.distill.{key} needs the same {name}: {theirs} there, {student[name]} here")
        free = key == "hidden_weight" and cfg.hidden_match == "nearest"
        if model.cfg.num_layers % student.num_layers and not free:
            layers = f"{model.cfg.num_layers} there, {student.num_layers} here"
            raise _fail(config, f"config.distill.{key} needs as many layers, or a multiple: {layers}")
        if key == "attention_weight" and (getattr(model.cfg, "layer_heads", ()) or student.layer_heads):
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


def teach(teacher: Teacher, config, dataset, layout: mesh.Layout | None = None) -> tuple[Any, str]:
    """(the dataset with a Taught training split, a line that says how good the teacher is there).

    Args:
      layout: of the run; None, the config's.
    """
    split, task = dataset.train, dataset.task
    if hasattr(teacher.model, "scored"):  # its logits are too many to keep
        return dataset, f"teacher   {config.distill.teacher}: asked in each step"
    path = cache.folder(config.data.cache_dir) / "teacher" / f"{_fingerprint(teacher, split)}.npz"
    logits = (cache.read(path) or {}).get("logits")
    how = "from the cache" if logits is not None else "computed"
    if not processes.in_all(logits is not None):
        layout = layout or mesh.create(config)
        variables = layout.put(teacher.variables, teacher.model)
        step = jax.jit(state_lib.make_eval_step(teacher.model), out_shardings=layout.whole)
        eval_step = functools.partial(step, variables["params"], variables.get("gates", {}))
        size = evaluate.step_size(config.train.eval_batch_size, len(split))
        batches = batching.eval_batches(split, size, dataset.buckets)
        logits, _ = evaluate.outputs(eval_step, task, split, batches, layout.rows)
        cache.write(path, {"logits": logits})
    name = task.metrics[0]
    score = evaluate.metrics(task, logits, split.labels)[name]
    line = f"teacher   {config.distill.teacher}: {name} {score:.4f} on the training examples; logits {how}"
    line += f"; {teacher.note}" if teacher.note else ""
    return dataset._replace(train=Taught(split, logits)), line


# The loss ------------------------------------------------------------------------------------------------------------


def soft_losses(logits: jax.Array, targets: jax.Array, temperature: float, regression: bool) -> jax.Array:
    """(batch,) float32: T^2 * KL(teacher || student) in nats at temperature T, or the scores' squared difference.

    Args:
      logits, targets: (batch, num_labels) float32, of the student and of the teacher; or (batch, length, num_labels),
        for (batch, length).
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


def _nearest(ours: list[jax.Array], theirs: list[jax.Array], mask: jax.Array, matrix: jax.Array) -> jax.Array:
    """The mean over four teacher layers of the least mean squared difference to an output of the student's, mapped.

    Args:
      ours, theirs: (batch, length, width) of each layer; mask: (batch, length, 1); matrix: (width, width) float32.
    """
    count = min(4, len(theirs))
    taught = [theirs[-(-(i + 1) * len(theirs) // count) - 1] for i in range(count)]
    mapped = [h.astype(jnp.float32) @ matrix for h in ours]
    return sum(jnp.min(jnp.stack([_mean_square([h], [t], mask) for h in mapped])) for t in taught) / count


def mapped(method: Method, config) -> Method:
    """The method with the leaf that config.distill trains: the linear map of the student's outputs, where asked for."""
    cfg = config.distill
    if not (cfg.teacher and cfg.hidden_weight and cfg.hidden_match == "nearest"):
        return method

    def init_trainable(params, gates, plan):
        return {**method.init_trainable(params, gates, plan), state_lib.MAP: jnp.eye(config.model.d_model)}

    rates = {**method.rates, state_lib.MAP: config.train.learning_rate}
    return method._replace(init_trainable=init_trainable, rates=rates)


def training_loss(cfg, teacher: Teacher, smoothing: float = 0.0) -> Callable:
    """The loss in the place of state.batch_loss for a training step, of config.distill.

    (model, params, gates, batch, dropout_key, variables of the teacher or None, the linear map of `mapped` or None) ->
    () float32; the batch has teacher_logits, and the variables are read only where is_asked(cfg, model). A decoder's
    batch has no such logits: the teacher makes them in the step, and its soft loss is the mean over the tokens that are
    scored.

    Args:
      smoothing: of the labels; the teacher's targets stay.
    """

    def loss(model, params, gates, batch, dropout_key, variables, matrix=None):
        weights = batch["weights"]
        capture = in_step(cfg)
        saved = state_lib.apply(model, params, gates, batch, dropout_key, capture)
        logits, layers = saved if capture else (saved, None)
        hard = state_lib.smoothed_losses(model, logits, batch, smoothing)
        asked = LOGITS not in batch
        if asked:
            of = variables["params"], variables.get("gates", {}), batch, None, capture
            answer = state_lib.apply(teacher.model, *of)
            targets, taught = answer if capture else (answer, None)
            soft = soft_losses(logits[:, :-1], targets[:, :-1], cfg.temperature, False)
            scored = batch["token_weights"][:, 1:]
            soft = jnp.sum(soft * scored, axis=1) / jnp.maximum(jnp.sum(scored, axis=1), 1)
        else:
            soft = soft_losses(logits, batch[LOGITS], cfg.temperature, logits.shape[-1] == 1)
        losses = (1 - cfg.weight) * hard + cfg.weight * soft
        total = jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1)
        if not capture:
            return total
        if not asked:
            of = variables["params"], variables.get("gates", {}), batch, None, True
            _, taught = state_lib.apply(teacher.model, *of)
        tokens = batch["token_weights" if asked else "attention_mask"] * weights[:, None]
        if cfg.hidden_weight:
            outputs = layers["hidden"], taught["hidden"], tokens[:, :, None]
            near = cfg.hidden_match == "nearest"
            total += cfg.hidden_weight * (_nearest(*outputs, matrix) if near else _mean_square(*outputs))
        if cfg.attention_weight:
            pairs = tokens[:, None, :, None] * tokens[:, None, None, :]
            total += cfg.attention_weight * _mean_square(layers["attention"], taught["attention"], pairs)
        return total

    return loss


def in_step(cfg) -> bool:
    """Whether config.distill needs the layers of the teacher in the training step."""
    return bool(cfg.hidden_weight or cfg.attention_weight)


def is_asked(cfg, model) -> bool:
    """Whether the teacher is an argument of the training step: for its layers, or for logits too many to keep."""
    return in_step(cfg) or hasattr(model, "scored")


def changes_loss(cfg) -> bool:
    """Whether anything of config.distill enters the loss."""
    return bool(cfg.teacher) and bool(cfg.weight or in_step(cfg))
