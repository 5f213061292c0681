"""Prune a decoder: a language model of characters, trained on Python's own help texts, with 80 % of its weights closed.

The metric is bits per character of the last tenth of the text, which training never sees.
"""

import pydoc_data.topics

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prune_jax as pj

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 96, 4, 2, 64, 32

text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
characters = sorted(set(text))
tokens = np.array([characters.index(character) for character in text])
split = len(tokens) * 9 // 10
train_tokens, test_tokens = tokens[:split], tokens[split:]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x), mask=mask)
        hidden = nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(hidden)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(len(characters), WIDTH)(tokens)
        x = x + nn.Embed(CONTEXT, WIDTH, name="position_embedding")(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        for _ in range(LAYERS):
            x = Block()(x, mask)
        return nn.Dense(len(characters), name="head")(nn.LayerNorm()(x))


model = Decoder()


def loss_fn(params, windows):
    """The mean cross-entropy, in nats, of each character of (batch, CONTEXT + 1) windows but the first."""
    logits = model.apply(params, windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


def bits_per_character(params):
    usable = len(test_tokens) // (CONTEXT + 1) * (CONTEXT + 1)
    batches = np.array_split(test_tokens[:usable].reshape(-1, CONTEXT + 1), 8)
    losses = [loss_fn(params, batch) * len(batch) for batch in batches]
    return float(sum(losses) / sum(map(len, batches)) / np.log(2))


def train(tx, params, steps):
    state = tx.init(params)

    @jax.jit
    def step(params, state, windows):
        loss, grads = jax.value_and_grad(loss_fn)(params, windows)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng = np.random.default_rng(0)
    for count in range(1, steps + 1):
        starts = rng.integers(len(train_tokens) - CONTEXT, size=BATCH)
        params, state, loss = step(params, state, train_tokens[starts[:, None] + np.arange(CONTEXT + 1)])
        if count % 100 == 0:
            print(f"step {count:4}  training loss {loss:.3f}")
    return params, state


start = model.init(jax.random.key(0), np.zeros((1, CONTEXT), int))
start, _ = train(optax.adamw(optax.linear_schedule(0.0, 5e-3, 100)), start, steps=400)

# Two networks go on from here for as many steps: one dense, one pruned.
optimizer = optax.adamw(optax.linear_schedule(5e-3, 0.0, 300))
params, _ = train(optimizer, start, steps=300)
dense = bits_per_character(params)

schedule = pj.cubic(0.8, begin=1, end=150, every=10)
tx = pj.prune(optimizer, pj.magnitude(), schedule, scope="global", rules={"head": pj.KEEP})
params, state = train(tx, start, steps=300)
pruned = bits_per_character(params)

print(f"dense {dense:.3f} bits per character  pruned {pruned:.3f}  sparsity {pj.sparsity(state):.3f}")
for name, share in pj.layer_sparsity(pj.gates(state)).items():
    print(f"  {name:60} {share:.3f}")

# Of all gates together exactly 80 % are closed, and closed weights are exactly 0: masking them changes nothing.
gates = jax.tree.leaves(pj.gates(state))
assert sum((~gate).sum() for gate in gates) == round(0.8 * sum(gate.size for gate in gates))
jax.tree.map(np.testing.assert_array_equal, params, pj.masked(params, state))
assert pruned < dense + 0.4
