"""The cost of an SPT step and of its pieces.

    python -m benchmarks.spt_step

Prints, for the tiny and the 6x384 geometry, median seconds of the plain training step, of one forward pass without
dropout, and of SPT steps with E = 1, and with E = 4 and 8 run one by one, two by two, and all under one vmap. `ratio`
is the E = 1 step over (training step + 2 forward passes).
"""

import argparse

import jax

from benchmarks import harness
from configs import common
from prune_jax import config as config_lib
from prune_jax.pruning import packed
from prune_jax.run import state


def config_for(method: str, **spt):
    config = common.get_config()
    config.data.source = "builtin"
    config.model.size = "tiny"
    config.pruning.method = method
    config.spt.update(spt)
    return config_lib.resolve(config, {})[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--geometries", nargs="+", default=list(harness.GEOMETRIES), choices=list(harness.GEOMETRIES))
    parser.add_argument("--explorations", nargs="*", type=int, default=[4, 8])
    args = parser.parse_args()
    for geometry in args.geometries:
        model, batch = harness.make_model(geometry), harness.make_batch()
        train = harness.Training(model, config_for("baseline"), batch)
        forward = jax.jit(lambda params, gates, model=model, batch=batch: state.batch_loss(model, params, gates, batch))
        opened = packed.unpack(train.state.gates)
        cases = {
            "train_step": train,
            "forward": lambda train=train, forward=forward, gates=opened: forward(train.state.params, gates),
            "spt_1": harness.Training(model, config_for("spt"), batch),
        }
        for e in args.explorations:
            for chunk in (1, 2, e):
                spt = config_for("spt", explorations=e, chunk=chunk)
                cases[f"spt_{e}_chunk_{chunk}"] = harness.Training(model, spt, batch)
        seconds = harness.interleaved(cases, args.repeats)
        ratio = seconds["spt_1"] / (seconds["train_step"] + 2 * seconds["forward"])
        harness.report(
            benchmark="spt_step",
            geometry=geometry,
            batch="32x64",
            seconds={name: round(value, 4) for name, value in seconds.items()},
            ratio=round(ratio, 3),
        )


if __name__ == "__main__":
    main()
