"""Prune a flax.nnx network through nnx.Optimizer: a CNN on scikit-learn's digits, 80 % closed over all layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import prune_jax as pj


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 32, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv1(x))
        x = nnx.relu(self.norm(self.conv2(x)))
        return self.head(nnx.relu(self.dense(x.reshape(len(x), -1))))


images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1) / 16.0
x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=360, random_state=0)


@nnx.jit
def step(model, optimizer, x, y):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    grads = nnx.grad(loss_fn)(model)
    optimizer.update(model, grads)


def train(tx, steps=600):
    model = CNN(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    model.train()
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(len(x_train), size=64)
        step(model, optimizer, x_train[rows], y_train[rows])
    model.eval()
    accuracy = jnp.mean(jnp.argmax(model(x_test), -1) == y_test)
    return model, optimizer, float(accuracy)


_, _, dense = train(optax.adamw(1e-3))

schedule = pj.cubic(0.8, begin=100, end=400, every=20)
rules = {"conv1": pj.KEEP}  # 144 weights that read the image stay dense
tx = pj.prune(optax.adamw(1e-3), pj.magnitude(), schedule, scope="global", rules=rules)
model, optimizer, pruned = train(tx)

print(f"dense {dense:.3f}  pruned {pruned:.3f}  sparsity {pj.sparsity(optimizer):.3f}")
for name, share in pj.layer_sparsity(pj.gates(optimizer)).items():
    print(f"  {name:6} {share:.3f}")

# Of all gates together exactly 80 % are closed, and closed weights are exactly 0: masking them changes nothing.
gates = jax.tree.leaves(pj.gates(optimizer))
assert sum((~gate).sum() for gate in gates) == round(0.8 * sum(gate.size for gate in gates))
params = nnx.state(model, nnx.Param)
jax.tree.map(np.testing.assert_array_equal, params, pj.masked(params, optimizer))
assert pruned > dense - 0.02
