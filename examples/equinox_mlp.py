"""Prune an equinox module: an MLP on scikit-learn's digits, by movement, with closed weights that may come back."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import prune_jax as pj

images, labels = load_digits(return_X_y=True)
images = (images / 16.0).astype(np.float32)
x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=360, random_state=0)


def logits(model, x):
    return jax.vmap(model)(x)


def train(method, schedule, steps=1_500):
    tx = pj.prune(optax.adamw(1e-3), method, schedule, scope="global")
    model = eqx.nn.MLP(64, 10, width_size=128, depth=2, key=jax.random.key(0))
    state = tx.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state, x, y):
        def loss_fn(model):
            # Movement keeps the weights of closed gates for their return: the loss sees them at 0.
            seen = pj.masked(model, state)
            return optax.softmax_cross_entropy_with_integer_labels(logits(seen, x), y).mean()

        grads = eqx.filter_grad(loss_fn)(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(len(x_train), size=64)
        model, state = step(model, state, x_train[rows], y_train[rows])
    model = pj.masked(model, state)  # from here on closed weights are 0
    accuracy = jnp.mean(jnp.argmax(logits(model, x_test), -1) == y_test)
    return model, state, float(accuracy)


_, _, dense = train(pj.magnitude(), pj.constant(0.0))  # the same loop with all gates open

schedule = pj.cubic(0.9, begin=300, end=1_000, every=10)
model, state, pruned = train(pj.movement(regrow=True), schedule)

print(f"dense {dense:.3f}  pruned {pruned:.3f}  sparsity {pj.sparsity(state):.3f}")

# Of all gates together exactly 90 % are closed, and so many of the model's kernel weights are exactly 0.
gates = jax.tree.leaves(pj.gates(state))
closed = sum(int((~gate).sum()) for gate in gates)
assert closed == round(0.9 * sum(gate.size for gate in gates))
assert closed == sum(int((layer.weight == 0).sum()) for layer in model.layers)
assert pruned > dense - 0.02
