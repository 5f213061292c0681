"""The collectives of a training step on a mesh, and the bytes that each device sends for them, read from the program.

    python -m benchmarks.scaling [--size=base] [--meshes 8,1,1 1,8,1] [--methods magnitude spt] [--rows=32]
    python -m benchmarks.scaling --topology=v5e:16x16 --meshes 256,1,1 --dtype=bfloat16     # needs libtpu, but no TPU

The step is compiled for eight simulated devices of this machine's processor, or for the chips of a TPU topology; it
does not run. Each line has, by the kind of collective and the devices that take part in it, how many there are in a
step and the bytes that a device sends, as in a ring of g devices: (g - 1) / g of what an all-gather gives or a
reduce-scatter takes, twice that of what an all-reduce sums. `flops` and `bytes_accessed` are the compiler's count for
one device. `beyond_adam`, for one device, is the bytes between steps per gated weight beyond params and Adam; those of
the batch are among them.
"""

import argparse
import functools
import math
import os
import re
from collections import Counter

import jax
import numpy as np

from benchmarks import harness
from configs import common
from prune_jax import config as config_lib
from prune_jax import methods, models
from prune_jax.data.glue import TASKS
from prune_jax.models import units
from prune_jax.pruning import gates as gates_lib
from prune_jax.run import mesh, optim
from prune_jax.run import state as state_lib

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_LINE = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({'|'.join(_KINDS)})(-start)?\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


def _bytes(types: str) -> list[int]:
    """The bytes of each array that a text names, such as f32[4,2]{1,0}."""
    sizes = []
    for kind, shape in _ARRAY.findall(types):
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        sizes.append(math.prod(int(n) for n in shape.split(",") if n) * bits // 8)
    return sizes


def _group(attributes: str, devices: int) -> int:
    """How many devices take part in one collective together."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", attributes):  # the axes of a mesh, then some
        sizes = dict(axis.split("=") for axis in match[1].split(","))
        return math.prod(int(sizes[axis]) for axis in match[2].split(","))
    if "replica_groups={}" in attributes:
        return devices
    raise ValueError(f"a collective whose devices cannot be read: {attributes[:300]}")


def collectives(text: str, devices: int) -> dict[str, dict[str, int]]:
    """The collectives of a compiled program's text: {"kind over devices": {"count", "bytes" that a device sends}}."""
    counts, sent = Counter(), Counter()
    for types, kind, started, rest in _LINE.findall(text):
        group = _group(rest, devices)
        sizes = _bytes(types)
        # What has started gives its inputs, too: the outputs are the second half.
        size = sum(sizes[len(sizes) // 2 :] if started and kind in ("all-gather", "reduce-scatter") else sizes)
        ring = {"all-reduce": 2 * (group - 1) / group, "reduce-scatter": group - 1, "collective-permute": 1}
        name = f"{kind} over {group}"
        counts[name] += 1
        sent[name] += round(size * ring.get(kind, (group - 1) / group))
    return {name: {"count": counts[name], "bytes": sent[name]} for name in sorted(counts)}


def compiled(name: str, args: argparse.Namespace, layout: mesh.Layout):
    """The training step of a method, compiled for a layout: batches of args.rows per device x args.length tokens."""
    config = common.get_config()
    config.model.size, config.pruning.method, config.model.dtype = args.size, name, args.dtype
    config.model.vocab_size, config.data.source = harness.VOCABULARY, "builtin"
    config = config_lib.resolve(config, {})[0]
    model, method = models.create(config, TASKS["sst2"], harness.VOCABULARY), methods.from_config(config)
    optimizer = optim.create(0.01, 1.0, tuple(method.rates), method.plain)
    plan = state_lib.make_plan(model, units.gate_shapes(model, "unstructured"), "unstructured", "global")
    init = functools.partial(state_lib.init_state, model, method, optimizer, plan)
    shapes = jax.eval_shape(init, jax.random.key(0))
    at = layout.of(shapes, model, shapes.params)
    state = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, at)
    rows = args.rows * layout.mesh.shape["data"] * layout.mesh.shape["fsdp"]
    batch = {
        key: jax.ShapeDtypeStruct((rows, *shape), kind, sharding=layout.rows)
        for key, shape, kind in (
            *((key, (args.length,), np.int32) for key in model.inputs), ("labels", (), np.int32),
            ("weights", (), np.float32),
        )
    }  # fmt: skip
    number = jax.ShapeDtypeStruct((), np.float32, sharding=layout.whole)
    rates = dict.fromkeys(("weights", *method.rates), number)
    hyper = dict.fromkeys((*method.hyper, "num_examples", "num_steps"), number)
    gather = layout.gather(model, shapes.params)
    step = state_lib.make_train_step(model, method, optimizer, plan, gather=gather)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(at, layout.whole))
    return jitted.lower(state, batch, rates, hyper).compile(), shapes


def devices_of(topology: str) -> list:
    if not topology:
        return jax.devices()
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="base", help="as config.model.size")
    parser.add_argument("--meshes", nargs="+", default=["8,1,1", "1,8,1", "2,2,2"], help="data,fsdp,tensor")
    parser.add_argument("--methods", nargs="+", default=["magnitude"])
    parser.add_argument("--rows", type=int, default=32, help="of a batch, per part of it")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--topology", default="", help="of TPU chips, as v5e:16x16; empty, this machine's processor")
    args = parser.parse_args()
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # jax has not looked for devices yet
    devices = devices_of(args.topology)
    for name in args.methods:
        for sizes in args.meshes:
            shape = tuple(map(int, sizes.split(",")))
            kinds = (jax.sharding.AxisType.Auto,) * 3
            layout = mesh.Layout(jax.make_mesh(shape, mesh.AXES, kinds, devices=devices[: math.prod(shape)]))
            program, shapes = compiled(name, args, layout)
            cost, memory = program.cost_analysis(), program.memory_analysis()
            parameters = sum(x.size for x in jax.tree.leaves(shapes.params))
            gated = gates_lib.count(shapes.gates)
            beyond = memory.argument_size_in_bytes - 12 * parameters  # params and Adam's two moments are float32
            harness.report(
                benchmark="scaling",
                method=name,
                size=args.size,
                parameters=parameters,
                gated=gated,
                beyond_adam=round(beyond / gated, 2) if layout.mesh.size == 1 else None,
                mesh=dict(zip(mesh.AXES, shape, strict=True)),
                topology=args.topology or "processor",
                batch=f"{args.rows}x{args.length}",
                dtype=args.dtype,
                flops=int(cost["flops"]),
                bytes_accessed=int(cost["bytes accessed"]),
                state_bytes=int(memory.argument_size_in_bytes),
                temporary_bytes=int(memory.temp_size_in_bytes),
                collectives=collectives(program.as_text(), layout.mesh.size),
            )


if __name__ == "__main__":
    main()
