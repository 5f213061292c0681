"""What the first closing costs: a network fine-tuned for a while, closed in different orders, without retraining.

    python -m benchmarks.first_closing --dir=GLUE_FOLDER --init_from=CHECKPOINT [--steps 160] [--shares 4 15 30]

SST-2. Movement closes the weights whose sum of -w * dL/dw over the steps is lowest. Beside it: chance, magnitude,
movement and magnitude backwards, the smallest sums whatever their sign, Adam's sum as the authors' code trains it (each
step's -w * dL/dw over its own running size), and each sum dealt out again among the weights of a kernel that have the
same size, or the same input or output: what still costs as much is not the choice of the weights but that of their
sizes, inputs or outputs. One JSON line with the dev accuracy and loss of each order at each share, in percent of each
of the encoder's kernels.
"""

import argparse
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import credit, harness
from prune_jax import config as config_lib
from prune_jax import models
from prune_jax.data import batching
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed
from prune_jax.pruning.method import Method
from prune_jax.run import evaluate, initial, inputs, optim, state

SAME_SIZE = 64  # neighbours in the order of |w| that share out their scores


def both_sums() -> Method:
    """No pruning; the state holds the plain sum of -w * dL/dw of every weight, and Adam's."""
    adam = optax.scale_by_adam()  # its rate changes no order

    def init(params, gates, plan):
        zeros = jax.tree.map(lambda gate: jnp.zeros(gate.shape, jnp.float32), gates)
        return {"sum": zeros, "adam": zeros, "optimizer": adam.init(zeros)}

    def after_step(info, old):
        weights, grads = (gates_lib.kernels(tree, info.gates) for tree in (info.params_before, info.grads))
        slopes = jax.tree.map(jnp.multiply, weights, grads)
        scaled, optimizer = adam.update(slopes, old["optimizer"])
        return {
            "sum": jax.tree.map(jnp.subtract, old["sum"], slopes),
            "adam": jax.tree.map(jnp.subtract, old["adam"], scaled),
            "optimizer": optimizer,
        }

    return Method("both_sums", scheduled=False, init=init, after_step=after_step)


def dealt(scores, weights, among: str, rng):
    """The scores of a kernel (in, out), each now that of another weight with the same input, output or size."""
    if among == "input":
        return rng.permuted(scores, axis=1)
    if among == "output":
        return rng.permuted(scores, axis=0)
    order = np.argsort(np.abs(weights), axis=None)
    found = np.empty(scores.size, scores.dtype)
    for some in np.array_split(order, -(-order.size // SAME_SIZE)):
        found[some] = scores.reshape(-1)[rng.permutation(some)]
    return found.reshape(scores.shape)


def orders(weights, state, seed: int) -> dict:
    """Trees of scores by name, the lowest of which close first."""
    weights, total, adam = jax.device_get((weights, state["sum"], state["adam"]))
    rng = np.random.default_rng(seed)
    found = {
        "random": jax.tree.map(np.zeros_like, weights),  # ties close at random
        "magnitude": jax.tree.map(np.abs, weights),
        "largest": jax.tree.map(lambda w: -np.abs(w), weights),
        "movement_smallest": jax.tree.map(np.abs, total),
    }
    for name, scores in (("movement", total), ("movement_adam", adam)):
        found[name] = scores
        found[f"{name}_backwards"] = jax.tree.map(np.negative, scores)
        for among in ("size", "input", "output"):
            deal = functools.partial(dealt, among=among, rng=rng)
            found[f"{name}_same_{among}"] = jax.tree.map(deal, scores, weights)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True, help="the GLUE folder")
    parser.add_argument("--init_from", required=True, help="a run or a checkpoint")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--shares", nargs="+", type=float, default=[4, 15, 30], help="percent")
    parser.add_argument("--examples", type=int, default=5120, help="of the training set; 0: all")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--buckets", nargs="+", type=int, default=[8, 16, 32, 64], help="tokens")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = credit.config_for(args, args.seed)
    config.model.init_from, config.pruning.method = args.init_from, "baseline"
    config, _ = inputs.resolve(config, {})
    dataset = inputs.load_data(config)
    model = models.create(config, dataset.task, config.model.vocab_size)
    method, optimizer = both_sums(), optim.create(config.train.weight_decay, config.train.clip_norm, ())
    plan = harness.make_plan(model, config.pruning.structure)
    now = jax.jit(functools.partial(state.init_state, model, method, optimizer, plan))(jax.random.key(args.seed))
    params, gates = initial.start(args.init_from, "best", model, dataset.task.labels).into(now.params, now.gates)
    now = now.replace(params=jax.device_put(params), gates=jax.device_put(gates))
    step = jax.jit(state.make_train_step(model, method, optimizer, plan), donate_argnums=0)
    rates = harness.rates(args.learning_rate, method)

    def batches(epoch):
        return batching.train_batches(dataset.train, args.batch_size, dataset.buckets, args.seed, epoch)

    for batch in itertools.islice(itertools.chain.from_iterable(map(batches, itertools.count())), args.steps):
        now, _ = step(now, batch, rates, {})

    eval_step, close = jax.jit(state.make_eval_step(model)), jax.jit(plan.close)

    def measured(gates):
        columns = evaluate.dataset_columns(
            functools.partial(eval_step, now.params, gates), dataset, config.train.eval_batch_size
        )
        return {"accuracy": round(columns["eval_metric"], 4), "loss": round(columns["eval_loss"], 4)}

    opened = packed.unpack(now.gates)
    found = {"dense": measured(opened)}
    for name, scores in orders(gates_lib.kernels(now.params, opened), now.method["state"], args.seed).items():
        closed = {s: close(opened, scores, s / 100, jax.random.key(args.seed)) for s in args.shares}
        found[name] = {f"{share:g}": measured(gates) for share, gates in closed.items()}
    harness.report(
        benchmark="first_closing",
        network=config_lib.model_label(config),
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        found=found,
    )


if __name__ == "__main__":
    main()
