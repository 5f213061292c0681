"""A trained network on texts or images that have no labels: a run's, a transformers checkpoint's, an artifact's."""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.data import batching, images, pictures, tokenizer
from prune_jax.data.glue import task_of
from prune_jax.errors import UserError
from prune_jax.run import artifact, evaluate, state
from prune_jax.run import folder as runs


class Predictor(NamedTuple):
    """A network with what it takes to ask it.

    Attributes:
      model, params, gates: the network.
      labels: the names of its classes in the order of its outputs; () for a regression.
      task: of the run, None of a checkpoint.
      tokenizer: None for images.
      max_len: tokens that a text is cut to.
    """

    model: Any
    params: Any
    gates: Any
    labels: tuple[str, ...]
    task: Any
    tokenizer: tokenizer.Tokenizer | None
    max_len: int

    def outputs(self, split, buckets: Sequence[int], batch_size: int) -> np.ndarray:
        """(n, num_labels) float32: the network's outputs on a split, in its order."""
        params, gates = jax.device_put((self.params, self.gates))
        step = jax.jit(lambda batch: (state.apply(self.model, params, gates, batch), batch["weights"]))
        asked = _Asked(max(1, len(self.labels)))
        return evaluate.outputs(step, asked, split, batching.eval_batches(split, batch_size, buckets))[0]

    def texts(self, texts_a: list[str], texts_b: list[str] | None = None, batch_size: int = 64) -> np.ndarray:
        """The outputs on texts, or on pairs of texts.

        Raises:
          UserError: the network reads no text, or pairs where single texts are given or the other way round.
        """
        if self.tokenizer is None:
            raise UserError("this network reads images; --in names a folder of them")
        pairs = self.task.is_pair if self.task else None
        if pairs is not None and pairs != (texts_b is not None):
            raise UserError(f"this network reads {'pairs of texts' if pairs else 'single texts'}")
        arrays = self.tokenizer.encode(texts_a, texts_b, self.max_len)
        split = batching.Split(*arrays, np.zeros(len(texts_a), np.int32))
        return self.outputs(split, batching.resolve_buckets(self.max_len), batch_size)

    def images(self, paths: Sequence[Path], batch_size: int = 64) -> np.ndarray:
        """The outputs on image files, which are brought to the network's shape.

        Raises:
          UserError: the network reads text, or a file is no image.
        """
        if self.tokenizer is not None:
            raise UserError("this network reads text; --in names a file of it")
        pixels = np.stack([pictures.load_image(path, self.task.shape) for path in paths])
        split = images.Images(pixels, 255, np.zeros(len(pixels), np.int32))
        return self.outputs(split, images.BUCKETS, batch_size)

    def answers(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """What outputs mean, per row: {"label", "probability"}, or {"score"} of a regression."""
        if not self.labels:
            return [{"score": float(score)} for score in outputs[:, 0]]
        spread = np.exp(outputs - outputs.max(-1, keepdims=True))
        spread /= spread.sum(-1, keepdims=True)
        chosen = zip(spread.argmax(-1), spread.max(-1), strict=True)
        return [{"label": self.labels[i], "probability": float(probability)} for i, probability in chosen]


class _Asked(NamedTuple):
    """What evaluate.outputs needs to know of a task."""

    num_labels: int


def load(path, kind: str) -> Predictor:
    """Reads the network in `path`: the folder of a run, an export to transformers, or an artifact.

    Args:
      kind: the checkpoint of a run, as runs.load names them.
    Raises:
      UserError: no network is there, or it has no head or no tokenizer.
    """
    path = Path(path)
    if not path.is_dir():
        network, text = artifact.read(path)
        with tempfile.TemporaryDirectory() as scratch:
            folder = artifact.save_tokenizer(text, Path(scratch) / "tokenizer", path)
            return _of_network(network, folder, path)
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is no network: it has no config.json; allowed: a run, an export, or a .pjx file")
    if runs.is_run(path):
        folder = path / "tokenizer"
        return _of_network(runs.load(path, kind), folder if folder.is_dir() else None, path)
    return _of_checkpoint(path)


def _of_network(network: runs.Network, folder: Path | None, path: Path) -> Predictor:
    from prune_jax.run.commands import export

    model, _, labels = export.model_of(network)
    config = config_lib.completed(network.config)
    task, tok = task_of(config.data), None
    if hasattr(model, "scored"):
        raise UserError(f"{path} is a decoder's, which has no classes to predict; export it to write text with it")
    if "input_ids" in model.inputs:
        if folder is None:
            raise UserError(f"{path} holds no tokenizer, without which no text can be read")
        tok = tokenizer.load(str(folder))
    return Predictor(model, network.params, network.gates, tuple(labels), task, tok, config.data.max_len)


def _of_checkpoint(path: Path) -> Predictor:
    from prune_jax import models
    from prune_jax.export import hf

    raw = files.read_json(path / "config.json")
    geometry, params = hf.read_config(str(path)), hf.load(str(path))
    head = next((name for name in models.HEADS if name in params), None)
    if head is None:
        raise UserError(f"{path} is a checkpoint without the head of a sequence classification: it predicts nothing")
    outputs, regression = params[head]["kernel"].shape[1], head == "regressor"
    names = raw.get("id2label") or {}
    labels = () if regression else tuple(str(names.get(str(i), i)) for i in range(outputs))
    geometry |= {name: geometry[name] or () for name in ("layer_heads", "layer_ffn")}
    model = models.Bert(models.BertConfig(**geometry, num_labels=outputs, regression=regression))
    gates = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, bool),
        jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["gates"],
    )
    settings = path / "tokenizer_config.json"
    longest = files.read_json(settings).get("model_max_length") if settings.is_file() else None
    most = geometry["max_positions"]
    length = longest if isinstance(longest, int) and longest < most else most
    return Predictor(model, params, gates, labels, None, tokenizer.load(str(path)), length)


def network_of_checkpoint(folder: Path) -> tuple[runs.Network, str]:
    """(the network of a transformers checkpoint as a run would have it, the text of its tokenizer).

    Its config has the checkpoint's geometry and classes, of texts of a user's own. The gate of a weight of 0 is closed.

    Raises:
      UserError: it cannot be read, or has no head for classification or no tokenizer.
    """
    from prune_jax.export import hf

    found = _of_checkpoint(folder)
    config = config_lib.default()
    with config.unlocked(), config.model.ignore_type(), config.data.ignore_type():
        config.model.update(hf.read_config(str(folder)))
        config.data.update(source="csv", task="classification" if found.labels else "regression")
        config.data.update(label_names=found.labels or None, max_len=found.max_len)
        config.pruning.method = "baseline"
    gates = jax.tree_util.tree_map_with_path(
        lambda path, _: np.asarray(functools.reduce(lambda tree, key: tree[key.key], path, found.params)) != 0,
        found.gates,
    )
    assert found.tokenizer is not None  # a network that reads text has one
    return runs.Network(config, found.params, gates), found.tokenizer.backend.to_str()
