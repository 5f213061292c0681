"""What a config means: values that follow others, and one clear message for each mistake.

A mistake is answered within a second: no device is touched, and no network is read but by the caller's `describe`.
"""

import os
from collections.abc import Mapping

from ml_collections import config_dict

from prune_jax import methods
from prune_jax.config import checks, pruning_checks
from prune_jax.config.following import Describe, follow
from prune_jax.config.rooms import MODELS
from prune_jax.config.sizes import SIZES
from prune_jax.config.values import check_types
from prune_jax.errors import UserError


def resolve(
    config, environ: Mapping[str, str] = os.environ, describe: Describe | None = None
) -> tuple[config_dict.ConfigDict, list[str]]:
    """Completes and checks a copy of `config`.

    BENCHMARK_EPOCHS in `environ` overrides train.epochs. Values that follow the model size are filled in unless the
    user set them; percentages become fractions. Resolving a resolved config changes nothing.

    Args:
      describe: reads the network that config.model.init_from names: its path or name -> (the keys of config.model that
        it decides, its tokenizer for config.data.tokenizer or ""). A config without init_from needs none. A program
        that is to run the config calls prune_jax.run.inputs.resolve, which brings one.
    Returns:
      (the complete config, locked; notes that the user should read).
    Raises:
      UserError: the first mistake found, with the key, its value, and what is allowed.
    """
    config = config_dict.ConfigDict(
        config.to_dict() if hasattr(config, "to_dict") else config
    ).copy_and_resolve_references()
    notes: list[str] = []
    config.unlock()
    check_types(config)
    _override_epochs(config, environ, notes)
    follow(config, describe)
    pruning_checks.check_sparsities(config)
    checks.check(config)
    pruning_checks.check_oneshot(config)
    pruning_checks.window_notes(config, notes)
    pruning_checks.patience_notes(config, notes)
    pruning_checks.check_structure(config, notes)
    pruning_checks.check_method(config)
    pruning_checks.check_spt(config)
    config.lock()
    return config, notes


def _override_epochs(config, environ: Mapping[str, str], notes: list[str]) -> None:
    """Takes the epochs that the environment asks for in place of the config's own."""
    text = environ.get("BENCHMARK_EPOCHS", "").strip()
    if not text:
        return
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"BENCHMARK_EPOCHS is {text!r}; allowed: a whole number of epochs, 1 or more")
    if int(text) != config.train.epochs:
        notes.append(f"BENCHMARK_EPOCHS={text} overrides config.train.epochs={config.train.epochs}")
    config.train.epochs = int(text)


def structure(config) -> str:
    """The structure of a resolved config's gates: pruning.structure, or unstructured where nothing closes gates."""
    closes = methods.scheduled(config.pruning.method) or config.oneshot.method
    return config.pruning.structure if closes else "unstructured"


def pretraining(config) -> config_dict.ConfigDict:
    """Makes the config of the dense run that config.pretrain asks for."""
    dense = config.copy_and_resolve_references()
    dense.pruning.method = "baseline"
    dense.train.epochs, dense.train.learning_rate = config.pretrain.epochs, config.pretrain.learning_rate
    dense.pretrain.epochs, dense.distill.teacher, dense.oneshot.method = 0, "", ""
    dense.train.max_steps = dense.train.patience = 0  # of the run itself
    return dense


def model_label(config) -> str:
    """The name of a resolved config's network in tables: model.name, or, for a transformer, the size of its geometry.

    A transformer of no such size, as many checkpoints are, goes by layers and d_model: "6x384".
    """
    m = config.model
    if MODELS[m.name] == "images":
        return m.name
    geometry = (m.num_layers, m.d_model, m.num_heads, m.d_ff)
    sizes = {size[: len(geometry)]: name for name, size in SIZES.items()}
    return sizes.get(geometry, f"{m.num_layers}x{m.d_model}")
