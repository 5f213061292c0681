"""The training and pruning steps of every method are lowered for accelerators, on a machine that has none."""

import jax
import numpy as np
import pytest

from configs import common
from prune_jax import config as config_lib
from prune_jax import methods
from prune_jax.models import units
from prune_jax.models.bert import Bert, BertConfig
from prune_jax.models.lenet import GEOMETRIES, LeNet
from prune_jax.run import mesh, optim
from prune_jax.run import state as state_lib

AUTO = (jax.sharding.AxisType.Auto,) * 3
ONE, EIGHT = (1, 1, 1), (2, 2, 2)
QUICK = ("movement", "spt", "sws", "l0")


def placed(tree, at):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, at)


def steps(name: str, layout: mesh.Layout):
    """((the training step, its arguments), (the pruning step, its arguments)), arguments as shapes on a mesh."""
    config = common.get_config()
    config.model.size, config.pruning.method, config.spt.explorations, config.spt.chunk = "tiny", name, 2, 2
    model = Bert(BertConfig(vocab_size=44, num_layers=1, d_model=16, num_heads=2, d_ff=32, max_positions=8))
    if name == "synflow":  # whose input of ones is an image
        config.model.name, config.data.task, config.data.source = "lenet_300_100", "digits", "builtin"
        model = LeNet(GEOMETRIES["lenet_300_100"], (8, 8, 1), 10)
    method = methods.from_config(config_lib.resolve(config, {})[0])
    optimizer = optim.create(0.01, 1.0, tuple(method.rates), method.plain)
    plan = state_lib.make_plan(model, units.gate_shapes(model, "unstructured"), "unstructured", "global")
    shapes = jax.eval_shape(lambda key: state_lib.init_state(model, method, optimizer, plan, key), jax.random.key(0))
    gather = layout.gather(model, shapes.params)
    state = placed(shapes, layout.of(shapes, model, shapes.params))
    batch = {
        key: jax.ShapeDtypeStruct((16, *like.shape[1:]), like.dtype, sharding=layout.rows)
        for key, like in zip(model.inputs, model.example_inputs(), strict=True)
    }
    for key, kind in (("labels", np.int32), ("weights", np.float32)):
        batch[key] = jax.ShapeDtypeStruct((16,), kind, sharding=layout.rows)
    number = jax.ShapeDtypeStruct((), np.float32)
    rates = dict.fromkeys(("weights", *method.rates), number)
    hyper = dict.fromkeys((*method.hyper, "num_examples", "num_steps"), number)
    train = state_lib.make_train_step(model, method, optimizer, plan, gather=gather)
    prune = state_lib.make_prune_step(method, plan)
    return (train, (state, batch, rates, hyper)), (prune, (state, number, jax.ShapeDtypeStruct((), bool)))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=() if name in QUICK and shape == EIGHT else pytest.mark.slow)
        for name in methods.REGISTRY
        for shape in ((EIGHT, ONE) if name == "spt" else (EIGHT,))
    ],
)
def test_the_steps_are_lowered_for_tpu_and_cuda(name, shape):
    layout = mesh.Layout(jax.sharding.AbstractMesh(shape, mesh.AXES, AUTO))
    train, prune = steps(name, layout)
    for step, arguments in (train, prune) if methods.scheduled(name) else (train,):
        text = jax.jit(step).trace(*arguments).lower(lowering_platforms=("tpu", "cuda")).as_text()
        assert ("sdy.sharding" in text or "mhlo.sharding" in text) and "stablehlo" in text
