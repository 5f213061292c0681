"""A training step of the package's Bert, half of its gates closed, over the same network in plain flax.linen.

    python -m benchmarks.gated_step [--clock=processor]

Forward with dropout, backward and AdamW with clipping, float32, 32 x 64 tokens. PlainBert below is the same network
with nn.Dense in the place of GatedDense, and no gates anywhere; dropout and gelu are the package's on both sides. Both
start from the same weights, and their losses are compared before a step is timed.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from benchmarks.spt_step import config_for
from prune_jax.models import BertConfig
from prune_jax.models.functional import Dropout, classification_losses, gelu
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed
from prune_jax.run import optim, state

CLOSED = 0.5


class PlainLayer(nn.Module):
    cfg: BertConfig

    @nn.compact
    def __call__(self, x, bias, deterministic):
        cfg = self.cfg
        batch, length, _ = x.shape
        heads, depth = cfg.num_heads, cfg.d_model // cfg.num_heads

        def dropout(y):
            return Dropout(cfg.dropout)(y, deterministic)

        def norm(y, name):
            return nn.LayerNorm(epsilon=cfg.layer_norm_eps, name=name)(y)

        q, k, v = (
            nn.Dense(cfg.d_model, name=name)(x).reshape(batch, length, heads, depth)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * depth**-0.5, k)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", dropout(jax.nn.softmax(scores + bias)), v).reshape(x.shape)
        x = norm(x + dropout(nn.Dense(cfg.d_model, name="attention_output")(mixed)), "attention_norm")
        hidden = gelu(nn.Dense(cfg.d_ff, name="ffn_hidden")(x))
        return norm(x + dropout(nn.Dense(cfg.d_model, name="ffn_output")(hidden)), "ffn_norm")


class PlainBert(nn.Module):
    cfg: BertConfig

    @nn.compact
    def __call__(self, input_ids, token_type_ids, attention_mask, deterministic):
        cfg = self.cfg
        x = nn.Embed(cfg.vocab_size, cfg.d_model, name="token_embedding")(input_ids)
        x += nn.Embed(cfg.max_positions, cfg.d_model, name="position_embedding")(jnp.arange(input_ids.shape[1])[None])
        x += nn.Embed(cfg.type_vocab_size, cfg.d_model, name="type_embedding")(token_type_ids)
        x = nn.LayerNorm(epsilon=cfg.layer_norm_eps, name="embedding_norm")(x)
        x = Dropout(cfg.dropout)(x, deterministic)
        bias = jnp.where(attention_mask[:, None, None, :] > 0, 0.0, -1e9)
        for i in range(cfg.num_layers):
            x = PlainLayer(cfg, name=f"layer_{i}")(x, bias, deterministic)
        pooled = Dropout(cfg.dropout)(jnp.tanh(nn.Dense(cfg.d_model, name="pooler")(x[:, 0])), deterministic)
        return nn.Dense(cfg.num_labels, name="classifier")(pooled)


class PlainTraining:
    """A jitted training step of a PlainBert with its state; each call takes one step and returns the loss."""

    def __init__(self, cfg: BertConfig, params, batch):
        self.model, self.batch = PlainBert(cfg), batch
        optimizer = optim.create(0.01, 1.0, ())
        leaves = {"params": params, "method": {}}
        self.state = leaves, optimizer.init(leaves), jnp.int32(0)
        rates = {optim.WEIGHTS: jnp.float32(2e-5)}

        def step(state, batch):
            leaves, opt_state, count = state
            key = jax.random.fold_in(jax.random.key(1), count)
            loss, grads = jax.value_and_grad(lambda leaves: self.loss(leaves["params"], batch, key))(leaves)
            updates, opt_state = optimizer.update(grads, opt_state, leaves, learning_rates=rates)
            return (optax.apply_updates(leaves, updates), opt_state, count + 1), loss

        self.step = jax.jit(step, donate_argnums=0)

    def loss(self, params, batch, key=None):
        inputs = (batch[name] for name in ("input_ids", "token_type_ids", "attention_mask"))
        rngs = None if key is None else {"dropout": key}
        logits = self.model.apply({"params": params}, *inputs, key is None, rngs=rngs)
        return jnp.mean(classification_losses(logits, batch["labels"]))

    def __call__(self):
        self.state, loss = self.step(self.state, self.batch)
        return loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometries", nargs="+", default=list(harness.GEOMETRIES), choices=list(harness.GEOMETRIES))
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--clock", default="wall", choices=list(harness.CLOCKS))
    args = parser.parse_args()
    for geometry in args.geometries:
        model, batch = harness.make_model(geometry), harness.make_batch(args.rows)
        gated = harness.Training(model, config_for("magnitude"), batch)
        params = jax.tree.map(jnp.copy, gated.state.params)  # the state's own are donated
        opened = packed.unpack(gated.state.gates)
        scores = jax.tree.map(jnp.abs, gates_lib.kernels(params, opened))
        gates = jax.jit(harness.make_plan(model).close)(opened, scores, CLOSED, jax.random.key(0))
        gated.state = gated.state.replace(gates=packed.pack(gates))
        plain = PlainTraining(model.cfg, gates_lib.masked(params, gates), batch)
        assert gates_lib.sparsity(gates) == CLOSED
        ours = state.batch_loss(model, params, gates, batch)
        np.testing.assert_allclose(ours, plain.loss(plain.state[0]["params"], batch), rtol=1e-5)
        seconds = harness.interleaved({"plain": plain, "gated": gated}, args.repeats, args.clock)
        harness.report(
            benchmark="gated_step",
            geometry=geometry,
            batch=f"{args.rows}x64",
            closed=CLOSED,
            clock=args.clock,
            seconds={name: round(value, 4) for name, value in seconds.items()},
            ratio=round(seconds["gated"] / seconds["plain"], 3),
        )


if __name__ == "__main__":
    main()
