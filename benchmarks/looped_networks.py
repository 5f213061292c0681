"""Networks that were tried after those of later_networks: weights made of weights, loops, codes; all in NETWORKS."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.graph_networks import Network, drawn, network, normal, of_equinox, of_linen
from benchmarks.later_networks import NETWORKS
from benchmarks.unseen_networks import of_nnx

__all__ = ["NETWORKS"]


# Weights made of weights ----------------------------------------------------------------------------------------------


@network
def hypernetwork() -> Network:
    """Layers whose weights another network makes, for each example."""
    params = drawn(inp=(4, 9), bias=(9,), first=(9, 5, 8), second=(9, 8, 3), shift=(9, 8))

    def one(p: dict, task: jax.Array, x: jax.Array) -> jax.Array:
        code = jnp.tanh(task @ p["inp"] + p["bias"])
        first, second = (jnp.tensordot(code, p[n], 1) for n in ("first", "second"))
        return jax.nn.relu(x @ first + code @ p["shift"]) @ second

    fn = lambda p, *x: jax.vmap(one, (None, 0, 0))(p, *x)  # noqa: E731
    return Network(fn, params, (normal(2, 4), normal(2, 3, 5)), (normal(3, 4), normal(3, 6, 5)))


@network
def adapted() -> Network:
    """LoRA beside frozen kernels, one with a length per output, as DoRA's; an adapter between."""
    params: dict[str, Any] = {"head": drawn(w=(8, 3))["w"]}
    for i, (a, b) in enumerate(((6, 10), (10, 8))):
        params[f"layer_{i}"] = drawn(1 + i, frozen=(a, b), bias=(b,), down=(a, 3), up=(3, b), length=(b,))
    params["adapter"] = drawn(5, down=(8, 4), up=(4, 8))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        own = p["layer_0"]
        x = jax.nn.gelu(x @ jax.lax.stop_gradient(own["frozen"]) + 2.0 * (x @ own["down"]) @ own["up"] + own["bias"])
        own = p["layer_1"]
        whole = jax.lax.stop_gradient(own["frozen"]) + own["down"] @ own["up"]
        x = x @ (whole / jnp.linalg.norm(whole + 1e-6, axis=0) * own["length"]) + own["bias"]
        return (x + jax.nn.relu(x @ p["adapter"]["down"]) @ p["adapter"]["up"]) @ p["head"]

    return Network(fn, params, (normal(2, 6),), (normal(5, 6),))


@jax.custom_vjp
def _rounded(x: jax.Array) -> jax.Array:
    return jnp.round(x)


_rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


@network
def fake_quantised() -> Network:
    """Kernels on a grid of 8 bits per output, activations on one of their own, both rounded straight through."""
    params = drawn(a=(6, 10), a_bias=(10,), b=(10, 8), c=(8, 3), step=(1,))

    def kernel(w: jax.Array) -> jax.Array:
        scale = jnp.maximum(jnp.max(jnp.abs(w), axis=0), 1e-6) / 127
        return jnp.clip(_rounded(w / scale), -127, 127) * scale

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(x @ kernel(p["a"]) + p["a_bias"])
        x = jnp.clip(_rounded(x / 0.05), 0, 255) * 0.05
        return jax.nn.relu6(x @ kernel(p["b"])) @ kernel(p["c"])

    return Network(fn, params, (normal(2, 6),), (normal(5, 6),))


class _Normalised(nn.Module):
    """Kernels of linen's WeightNorm, and a spectral norm by hand with its stored vector."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.WeightNorm(nn.Dense(10, name="first"))(x))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (10, 8))
        u = self.param("u", nn.initializers.normal(), (8,))
        v = kernel @ u
        v = v / (jnp.linalg.norm(v) + 1e-6)
        u = kernel.T @ v
        u = jax.lax.stop_gradient(u / (jnp.linalg.norm(u) + 1e-6))
        x = nn.leaky_relu(x @ (kernel / (v @ kernel @ u)))
        return nn.Dense(3, name="head")(x)


@network
def normalised_kernels() -> Network:
    return of_linen(_Normalised(), normal(2, 6), others=(normal(5, 6),))


@network
def bilinear() -> Network:
    """Two towers, an image's and a question's, met in a bilinear form, by parts, and by cosine."""
    params = drawn(a=(5, 8), b=(6, 7), form=(4, 8, 7), bias=(4,), left=(8, 9), right=(7, 9), out=(13, 3))

    def fn(p: dict, x: jax.Array, y: jax.Array) -> tuple:
        x, y = jax.nn.relu(x @ p["a"]), jnp.tanh(y @ p["b"])
        met = jnp.einsum("bi,oij,bj->bo", x, p["form"], y) + p["bias"]
        parts = (x @ p["left"]) * (y @ p["right"])
        left, right = (z / jnp.sqrt((z * z).sum(-1, keepdims=True) + 1e-6) for z in (x @ p["left"], y @ p["right"]))
        return jnp.concatenate([met, parts], -1) @ p["out"], left @ right.T

    return Network(fn, params, (normal(2, 5), normal(2, 6)), (normal(4, 5), normal(4, 6)))


class _Splines(eqx.Module):
    """KAN: each connection a curve, made of bumps."""

    curves: list[jax.Array]
    plain: list[eqx.nn.Linear]

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 4)
        sizes = ((4, 7), (7, 3))
        self.curves = [jax.random.normal(k, (b, a, 5)) for k, (a, b) in zip(keys, sizes, strict=False)]
        self.plain = [eqx.nn.Linear(a, b, use_bias=False, key=k) for k, (a, b) in zip(keys[2:], sizes, strict=True)]

    def __call__(self, x: jax.Array) -> jax.Array:
        for curve, plain in zip(self.curves, self.plain, strict=True):
            bumps = jnp.exp(-((x[:, None] - jnp.linspace(-1, 1, 5)) ** 2) * 4)
            x = jnp.einsum("oig,ig->o", curve, bumps) + plain(jax.nn.silu(x))
        return x


@network
def splines() -> Network:
    return of_equinox(_Splines, normal(2, 4), others=(normal(5, 4),))


# Loops ----------------------------------------------------------------------------------------------------------------


@network
def nested_scans() -> Network:
    """A scan over stacked layers, each a checkpointed scan over time, with a state that is carried through."""
    params: dict[str, Any] = {"inp": drawn(w=(4, 8))["w"], "out": drawn(1, w=(8, 3))["w"]}
    params["layers"] = drawn(2, x=(3, 8, 12), h=(3, 6, 12), b=(3, 12), back=(3, 6, 8))

    def fn(p: dict, x: jax.Array) -> tuple:
        x = (x @ p["inp"]).swapaxes(0, 1)

        def layer(carry: tuple, own: dict) -> tuple:
            x, count = carry

            @jax.checkpoint
            def step(h: jax.Array, now: jax.Array) -> tuple:
                gate, new = jnp.split(now @ own["x"] + h @ own["h"] + own["b"], 2, -1)
                h = jax.nn.sigmoid(gate) * h + (1 - jax.nn.sigmoid(gate)) * jnp.tanh(new)
                return h, h

            last, y = jax.lax.scan(step, jnp.zeros((x.shape[1], 6)), x)
            return (x + y @ own["back"], count + 1), jnp.linalg.norm(last)

        (x, count), norms = jax.lax.scan(layer, (x, 0), p["layers"])
        return x[-1] @ p["out"], count, norms

    return Network(fn, params, (normal(2, 5, 4),), (normal(3, 7, 4),))


@network
def differential_equation() -> Network:
    """A neural ODE: Runge-Kutta steps in a fori_loop, then an equilibrium found in a while_loop."""
    params = drawn(inp=(4, 8), a=(9, 12), a_bias=(12,), b=(12, 8), w=(8, 8), out=(8, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        def slope(t: jax.Array, y: jax.Array) -> jax.Array:
            y = jnp.concatenate([y, jnp.full((*y.shape[:-1], 1), t)], axis=-1)
            return jax.nn.softplus(y @ p["a"] + p["a_bias"]) @ p["b"]

        def step(i: int, y: jax.Array) -> jax.Array:
            t, h = i * 0.25, 0.25
            k1 = slope(t, y)
            k2 = slope(t + h / 2, y + h / 2 * k1)
            k3 = slope(t + h / 2, y + h / 2 * k2)
            return y + h / 6 * (k1 + 4 * k2 + slope(t + h, y + h * k3))

        x = jax.lax.fori_loop(0, 4, step, x @ p["inp"])
        go = lambda s: (s[1] > 1e-6) & (s[2] < 3)  # noqa: E731

        def turn(state: tuple) -> tuple:
            new = jnp.tanh(0.3 * state[0] @ p["w"] + x)
            return new, jnp.abs(new - state[0]).max(), state[2] + 1

        return jax.lax.while_loop(go, turn, (jnp.zeros_like(x), jnp.inf, 0))[0] @ p["out"]

    return Network(fn, params, (normal(2, 4),), (normal(5, 4),))


@network
def early_exit() -> Network:
    """Branches: a deeper half that runs only if the first is unsure, and one of three heads chosen by a number."""
    params = drawn(a=(5, 10), a_bias=(10,), exit=(10, 3), b=(10, 8), c=(8, 10))
    params["heads"] = [drawn(1 + i, w=(10, 3))["w"] for i in range(3)]

    def fn(p: dict, x: jax.Array, which: jax.Array) -> dict:
        x = jax.nn.relu(x @ p["a"] + p["a_bias"])
        sure = jax.nn.softmax(x @ p["exit"]).max() > 0.9
        x = jax.lax.cond(sure, lambda x: x, lambda x: x + jnp.tanh(x @ p["b"]) @ p["c"], x)
        heads = [lambda x, w=w: x @ w for w in p["heads"]]
        return {"logits": jax.lax.switch(which, heads, x), "sure": sure.astype(jnp.int32)}

    return Network(fn, params, (normal(2, 5), jnp.int32(0)), (normal(4, 5), jnp.int32(2)))


class _Bidirectional(nn.Module):
    """linen's own LSTM both ways over lengths, then a cell by hand with peepholes."""

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        both = nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(7)), nn.RNN(nn.GRUCell(5)))
        x = both(x, seq_lengths=lengths)
        mask = jnp.arange(x.shape[1]) < lengths[:, None]
        pooled = (x * mask[..., None]).sum(1) / lengths[:, None]
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(6, name="mix")(pooled)))


@network
def bidirectional() -> Network:
    return of_linen(
        _Bidirectional(), normal(2, 5, 4), jnp.asarray([5, 3]), others=(normal(3, 6, 4), jnp.asarray([2, 6, 4]))
    )


@network
def selective() -> Network:
    """Mamba: a causal convolution per channel, steps, inputs and readings that depend on the token, heads of state."""
    width, heads, depth, state = 10, 3, 4, 5
    params = drawn(inp=(4, width), proj=(width, 2 * heads * depth + 2 * state + heads), conv=(3, 1, heads * depth))
    params |= drawn(1, a=(heads,), d=(heads,), norm=(heads * depth,), out=(heads * depth, width), head=(width, 3))

    def fn(p: dict, u: jax.Array) -> jax.Array:
        u = u @ p["inp"]
        n, t, _ = u.shape
        sizes = np.cumsum([heads * depth, heads * depth, state, state])
        z, x, b, c, dt = jnp.split(_length_one(u) @ p["proj"], sizes, axis=-1)
        x = jax.lax.conv_general_dilated(jnp.pad(x, ((0, 0), (2, 0), (0, 0))), p["conv"], (1,), "VALID",
                                         dimension_numbers=("NWC", "WIO", "NWC"),
                                         feature_group_count=heads * depth)  # fmt: skip
        x, dt = jax.nn.silu(x).reshape(n, t, heads, depth), jax.nn.softplus(dt)

        def step(h: jax.Array, now: tuple) -> tuple:
            x, b, c, dt = now
            decay = jnp.exp(-dt * jnp.exp(p["a"]))
            h = h * decay[..., None, None] + jnp.einsum("nh,nhd,ns->nhds", dt, x, b)
            return h, jnp.einsum("nhds,ns->nhd", h, c)

        turns = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), (x, b, c, dt))
        y = jnp.moveaxis(jax.lax.scan(step, jnp.zeros((n, heads, depth, state)), turns)[1], 0, 1)
        y = (y + x * p["d"][:, None]).reshape(n, t, heads * depth) * jax.nn.silu(z)
        return (u + (_length_one(y) * p["norm"]) @ p["out"]) @ p["head"]

    return Network(fn, params, (normal(2, 5, 4),), (normal(3, 7, 4),))


def _length_one(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


# Numbers and encodings ------------------------------------------------------------------------------------------------


@network
def radiance_field() -> Network:
    """NeRF: waves of the position, a skip that joins them again, a density and a colour."""
    params = drawn(a=(27, 12), a_bias=(12,), b=(12, 12), c=(39, 10), density=(10, 1), d=(13, 8), colour=(8, 3))

    def fn(p: dict, x: jax.Array, view: jax.Array) -> dict:
        waves = 2.0 ** jnp.arange(4) * x[..., None]
        waves = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], axis=-1).reshape(*x.shape[:-1], -1)
        code = jnp.concatenate([x, waves], axis=-1)
        y = jax.nn.relu(jax.nn.relu(code @ p["a"] + p["a_bias"]) @ p["b"])
        y = jax.nn.relu(jnp.concatenate([code, y], axis=-1) @ p["c"])
        colour = jax.nn.relu(jnp.concatenate([y, view], axis=-1) @ p["d"]) @ p["colour"]
        return {"density": jax.nn.softplus(y @ p["density"])[..., 0], "colour": jax.nn.sigmoid(colour)}

    return Network(fn, params, (normal(2, 3), normal(2, 3)), (normal(5, 3), normal(5, 3)))


@network
def fourier_mixer() -> Network:
    """FNet mixes tokens by an FFT; a Fourier neural operator has weights of its own for the waves kept."""
    params = drawn(inp=(4, 10), up=(10, 14), down=(14, 10), real=(3, 10, 7), imag=(3, 10, 7), by=(10, 7), out=(7, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["inp"]
        x = x + jnp.real(jnp.fft.fft(x, axis=1))
        x = x + jax.nn.gelu(x @ p["up"]) @ p["down"]
        waves = jnp.fft.rfft(x, axis=1)[:, :3]
        waves = jnp.einsum("bkw,kwv->bkv", waves, p["real"] + 1j * p["imag"])
        y = jnp.fft.irfft(waves, n=x.shape[1], axis=1)
        return jax.nn.gelu(y + x @ p["by"]) @ p["out"]

    return Network(fn, params, (normal(2, 6, 4),), (normal(3, 8, 4),))


@network
def complex_layers() -> Network:
    """Complex weights, a ReLU of the length, a product with the conjugate; real at the end."""
    real = drawn(a=(4, 8), b=(8, 6), bias=(8,), out=(6, 3))
    imag = drawn(1, a=(4, 8), b=(8, 6))
    params = real | {name: real[name] + 1j * imag[name] for name in imag}

    def fn(p: dict, x: jax.Array) -> jax.Array:
        z = x @ p["a"]
        length = jnp.sqrt(jnp.real(z * jnp.conj(z)) + 1e-6)
        z = jax.nn.relu(length + p["bias"]) / length * z
        z = z @ p["b"]
        return (jnp.abs(z) ** 2 + jnp.real(z) - jnp.imag(z)) @ p["out"]

    return Network(fn, params, (normal(2, 4),), (normal(5, 4),))


class _Half(nnx.Module):
    """Parameters in float32, numbers in bfloat16, a softmax in float32."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        half = {"dtype": jnp.bfloat16, "rngs": rngs}
        self.inp, self.up, self.down = nnx.Linear(5, 12, **half), nnx.Linear(12, 16, **half), nnx.Linear(16, 12, **half)
        self.attention = nnx.MultiHeadAttention(3, 12, decode=False, **half)
        self.norm = nnx.LayerNorm(12, **half)
        self.head = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.inp(x)
        x = x + self.attention(self.norm(x))
        x = x + self.down(nnx.gelu(self.up(x)))
        return nnx.softmax(self.head(x.astype(jnp.float32)))


@network
def half_precision() -> Network:
    return of_nnx(_Half, normal(2, 5, 5), others=(normal(3, 7, 5),))


@network
def recommender() -> Network:
    """DLRM: tables of embeddings, a bag of them summed, the products of all pairs, a wide part."""
    params = drawn(users=(11, 6), items=(13, 6), wide=(13,), dense=(4, 9), dense_bias=(9,), to=(9, 6), up=(9, 8))
    params |= drawn(1, out=(8, 1))

    def fn(p: dict, x: jax.Array, user: jax.Array, bag: jax.Array) -> jax.Array:
        x = jax.nn.relu(x @ p["dense"] + p["dense_bias"]) @ p["to"]
        features = jnp.stack([x, p["users"][user], p["items"][bag].sum(1)], axis=1)
        pairs = jnp.einsum("bid,bjd->bij", features, features)
        low = pairs[:, np.tril_indices(3, -1)[0], np.tril_indices(3, -1)[1]]
        deep = jax.nn.relu(jnp.concatenate([x, low], axis=-1) @ p["up"]) @ p["out"]
        return jax.nn.sigmoid(deep[:, 0] + p["wide"][bag].sum(1))

    return Network(fn, params, (normal(2, 4), jnp.arange(2), jnp.arange(6).reshape(2, 3)),
                   (normal(4, 4), jnp.arange(4), jnp.arange(12).reshape(4, 3)))  # fmt: skip


@network
def coupling_flow() -> Network:
    """RealNVP: halves that scale and shift each other, sine layers between, the log of the determinant beside."""
    params: dict[str, Any] = {f"flow_{i}": drawn(i, a=(3, 8), b=(8, 9), c=(9, 6)) for i in range(2)}

    def fn(p: dict, x: jax.Array) -> dict:
        total = jnp.zeros(x.shape[0])
        for own in p.values():
            keep, move = jnp.split(x, 2, axis=-1)
            scale, shift = jnp.split(jnp.sin(3 * jnp.sin(keep @ own["a"]) @ own["b"]) @ own["c"], 2, axis=-1)
            scale = jnp.tanh(scale)
            x = jnp.flip(jnp.concatenate([keep, move * jnp.exp(scale) + shift], axis=-1), -1)
            total = total + scale.sum(-1)
        return {"z": x, "log_det": total}

    return Network(fn, params, (normal(2, 6),), (normal(5, 6),))


@network
def capsules() -> Network:
    """Dynamic routing: three turns of agreement between capsules, squashed."""
    params = drawn(a=(5, 6 * 4), w=(6, 3, 4, 5), d=(15, 8), e=(8, 2))

    def squash(x: jax.Array) -> jax.Array:
        square = (x * x).sum(-1, keepdims=True)
        return x * square / (1 + square) * jax.lax.rsqrt(square + 1e-6)

    def fn(p: dict, x: jax.Array) -> jax.Array:
        u = squash((x @ p["a"]).reshape(-1, 6, 4))
        votes = jnp.einsum("bid,ijde->bije", u, p["w"])
        logits = jnp.zeros(votes.shape[:3])
        for _ in range(3):
            v = squash(jnp.einsum("bij,bije->bje", jax.nn.softmax(logits, axis=2), votes))
            logits = logits + jnp.einsum("bije,bje->bij", votes, v)
        return jax.nn.relu(v.reshape(-1, 15) @ p["d"]) @ p["e"]

    return Network(fn, params, (normal(2, 5),), (normal(4, 5),))


@network
def mixture_density() -> Network:
    """Gaussians: their log-weights, means and scales as parts of one layer, and the likelihood of a target."""
    params = drawn(a=(4, 9), a_bias=(9,), b=(9, 8), parts=(8, 3 * 5), bias=(15,))

    def fn(p: dict, x: jax.Array, y: jax.Array) -> dict:
        x = jax.nn.gelu(jax.nn.selu(x @ p["a"] + p["a_bias"]) @ p["b"], approximate=False)
        weight, mean, scale = jnp.split(x @ p["parts"] + p["bias"], 3, axis=-1)
        scale = jax.nn.softplus(scale) + 1e-3
        each = -0.5 * ((y[:, None] - mean) / scale) ** 2 - jnp.log(scale)
        return {"nll": -jax.nn.logsumexp(jax.nn.log_softmax(weight) + each, axis=-1), "mean": mean}

    return Network(fn, params, (normal(2, 4), normal(2)), (normal(4, 4), normal(4)))
