"""A run's network: its model, its method and what that covers, and the network that it starts from."""

from collections.abc import Callable

import jax

from prune_jax import config as config_lib
from prune_jax import methods, models
from prune_jax.errors import UserError
from prune_jax.models import units
from prune_jax.pruning.method import Method
from prune_jax.run import distill, fitting, initial, inputs
from prune_jax.run import state as state_lib


def made(config, dataset, method_of: Callable[..., Method] = methods.from_config) -> tuple:
    """(the model, the method, the plan) of a resolved config. UserError where they do not fit each other."""
    model = models.create(config, dataset.task, config.model.vocab_size or dataset.vocab_size)
    method, structure = distill.mapped(method_of(config), config), config_lib.structure(config)
    try:
        gates = units.gate_shapes(model, structure)
        plan = state_lib.make_plan(model, gates, structure, config.pruning.scope)
        jax.eval_shape(lambda gates: method.init({}, gates, plan), gates)
    except ValueError as error:
        raise UserError(f"config.pruning.structure={structure}: {error}") from error
    return model, method, plan


def check_vocabulary(config, dataset) -> None:
    """Checks that the network has a row for each token, and reads the tokens that it was trained on."""
    rows, tok, source = config.model.vocab_size, dataset.tokenizer, config.model.init_from
    if tok is None:
        return
    if source:
        fitting.check_tokens(f"config.model.init_from={source!r}", inputs.describe(source)[1], rows, tok)
    elif rows not in (None, tok.vocab_size):
        raise UserError(
            f"config.model.vocab_size is {rows}, but the tokenizer has {tok.vocab_size} tokens ({tok.origin}); "
            "allowed: as many (leave the key unset to follow it)"
        )


def start(config, dataset, model, label_names) -> initial.Start:
    """What config.model.init_from gives to a model, its classes in the order of the task's labels."""
    cfg = config.model
    what, structure = f"config.model.init_from={cfg.init_from!r}", config_lib.structure(config)

    def order(params):
        return fitting.class_order(what, model, params, dataset, config.train.eval_batch_size, label_names)

    labels = dataset.task.labels
    return initial.start(cfg.init_from, cfg.init_checkpoint, model, labels, structure, cfg.keep_zeros, order)
