"""Prune a flax.linen network in your own training loop: an MLP on scikit-learn's digits, 90 % of its weights closed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import prune_jax as pj


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(256)(x))
        x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(x)


images, labels = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(images / 16.0, labels, test_size=360, random_state=0)
model = MLP()


def loss_fn(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()


def train(tx, steps=1_500):
    params = model.init(jax.random.key(0), x_train[:1])
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(loss_fn)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(len(x_train), size=64)
        params, state = step(params, state, x_train[rows], y_train[rows])
    accuracy = jnp.mean(jnp.argmax(model.apply(params, x_test), -1) == y_test)
    return params, state, float(accuracy)


_, _, dense = train(optax.adamw(1e-3))

schedule = pj.cubic(0.9, begin=300, end=1_000, every=50)
params, state, pruned = train(pj.prune(optax.adamw(1e-3), pj.magnitude(), schedule))

print(f"dense {dense:.3f}  pruned {pruned:.3f}  sparsity {pj.sparsity(state):.3f}")

# Every kernel has exactly its 90 % closed, and closed weights are exactly 0: masking them changes nothing.
for gate in jax.tree.leaves(pj.gates(state)):
    assert (~gate).sum() == round(0.9 * gate.size)
jax.tree.map(np.testing.assert_array_equal, params, pj.masked(params, state))
assert pruned > dense - 0.02
