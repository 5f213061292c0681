"""Networks that the graph had not seen when it was built, beside those of graph_networks: all are in NETWORKS."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.graph_networks import (
    NETWORKS,
    Network,
    drawn,
    images,
    network,
    normal,
    of_equinox,
    of_linen,
    randomised,
)

__all__ = ["NETWORKS"]


# Convolutions ---------------------------------------------------------------------------------------------------------


class _Inception(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for block in range(2):
            conv = lambda out, size, name, block=block: nn.Conv(out, (size, size), name=f"{name}_{block}")  # noqa: E731
            one = nn.relu(conv(4, 1, "one")(x))
            three = nn.relu(conv(6, 3, "three")(nn.relu(conv(3, 1, "three_in")(x))))
            five = nn.relu(conv(5, 5, "five")(nn.relu(conv(3, 1, "five_in")(x))))
            pooled = nn.relu(conv(4, 1, "pooled")(nn.avg_pool(x, (3, 3), padding="SAME")))
            largest = nn.max_pool(x, (3, 3), padding="SAME")
            x = jnp.concatenate([one, three, five, pooled, largest], axis=-1)
        return nn.Dense(5, name="head")(x.mean(axis=(1, 2)))


@network
def inception() -> Network:
    return of_linen(_Inception(), images(2, 8), others=(images(3, 10),))


class _Fire(nn.Module):
    """SqueezeNet."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3), (2, 2), name="stem")(x))
        for i, (squeeze, expand) in enumerate([(3, 5), (4, 6)]):
            x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
            y = nn.relu(nn.Conv(squeeze, (1, 1), name=f"squeeze_{i}")(x))
            left = nn.relu(nn.Conv(expand, (1, 1), name=f"left_{i}")(y))
            x = jnp.concatenate([left, nn.relu(nn.Conv(expand, (3, 3), name=f"right_{i}")(y))], -1)
        return nn.Conv(5, (1, 1), name="head")(x).mean((1, 2))


@network
def squeezenet() -> Network:
    return of_linen(_Fire(), images(2, 16), others=(images(3, 24),))


class _MBConv(nn.Module):
    """EfficientNet."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.silu(norm(name="stem_norm")(nn.Conv(8, (3, 3), (2, 2), use_bias=False, name="stem")(x)))
        for i, (out, strides, times) in enumerate([(8, 1, 2), (10, 2, 3), (10, 1, 3)]):
            wide = x.shape[-1] * times
            y = nn.silu(norm(name=f"norm_{i}_a")(nn.Conv(wide, (1, 1), use_bias=False, name=f"expand_{i}")(x)))
            depthwise = nn.Conv(wide, (5, 5), (strides,) * 2, feature_group_count=wide, use_bias=False, name=f"dw_{i}")
            y = nn.silu(norm(name=f"norm_{i}_b")(depthwise(y)))
            small = nn.silu(nn.Conv(3, (1, 1), name=f"reduce_{i}")(y.mean((1, 2), keepdims=True)))
            y = y * nn.sigmoid(nn.Conv(wide, (1, 1), name=f"excite_{i}")(small))
            y = norm(name=f"norm_{i}_c")(nn.Conv(out, (1, 1), use_bias=False, name=f"project_{i}")(y))
            x = x + y if x.shape == y.shape else y
        return nn.Dense(5, name="head")(x.mean((1, 2)))


@network
def efficientnet() -> Network:
    return of_linen(_MBConv(), images(2, 12), others=(images(3, 16),))


class _ConvNeXt(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm(name="stem_norm")(nn.Conv(6, (4, 4), (4, 4), name="stem")(x))
        for i, width in enumerate([6, 9]):
            if i:
                x = nn.Conv(width, (2, 2), (2, 2), name=f"down_{i}")(nn.LayerNorm(name=f"down_norm_{i}")(x))
            y = nn.Conv(width, (7, 7), feature_group_count=width, name=f"depthwise_{i}")(x)
            y = nn.gelu(nn.Dense(4 * width, name=f"up_{i}")(nn.LayerNorm(name=f"norm_{i}")(y)))
            scale = self.param(f"scale_{i}", nn.initializers.constant(0.1), (width,))
            x = x + scale * nn.Dense(width, name=f"down_{i}_b")(y)
        return nn.Dense(5, name="head")(nn.LayerNorm(name="last_norm")(x.mean((1, 2))))


@network
def convnext() -> Network:
    return of_linen(_ConvNeXt(), images(2, 16), others=(images(3, 32),))


class _GroupNormResNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
        self.stem, self.first, self.second = conv(3, 8), conv(8, 12), conv(12, 8)
        self.norms = nnx.List([nnx.GroupNorm(8, num_groups=4, rngs=rngs), nnx.GroupNorm(12, num_groups=3, rngs=rngs)])
        self.short = nnx.Conv(8, 8, kernel_size=(1, 1), strides=2, rngs=rngs)
        self.down = nnx.Conv(8, 8, kernel_size=(3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norms[0](self.stem(x)))
        x = x + self.second(nnx.relu(self.norms[1](self.first(x))))
        x = nnx.relu(self.short(x) + self.down(nnx.relu(x)))
        return self.head(x.max(axis=(1, 2)))


def of_nnx(make: Any, *inputs: Any, others: tuple) -> Network:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    params = randomised(nnx.to_pure_dict(state))

    def fn(p: dict, *x: jax.Array) -> jax.Array:
        own = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(own, p)
        return nnx.merge(graphdef, own)(*x)

    return Network(fn, params, inputs, others)


@network
def groupnorm_resnet() -> Network:
    return of_nnx(_GroupNormResNet, images(2, 8), others=(images(3, 12),))


@network
def wavenet() -> Network:
    """Dilated causal convolutions with gates, skips summed."""
    layers = 3
    params = {"inp": drawn(w=(3, 8))["w"], "mid": drawn(1, w=(6, 7))["w"], "out": drawn(2, w=(7, 4))["w"]}
    for i in range(layers):
        params[f"layer_{i}"] = drawn(3 + i, gated=(2, 8, 10), bias=(10,), back=(5, 8), skip=(5, 6))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x, total = x @ p["inp"], 0.0
        for i in range(layers):
            own, dilation = p[f"layer_{i}"], 2**i
            padded = jnp.pad(x, ((0, 0), (dilation, 0), (0, 0)))
            y = jax.lax.conv_general_dilated(
                padded, own["gated"], (1,), "VALID", rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
            )
            a, b = jnp.split(y + own["bias"], 2, axis=-1)
            y = jnp.tanh(a) * jax.nn.sigmoid(b)
            x, total = x + y @ own["back"], total + y @ own["skip"]
        return jax.nn.relu(jax.nn.relu(total) @ p["mid"]) @ p["out"]

    return Network(fn, params, (normal(2, 12, 3),), (normal(3, 17, 3),))


@network
def pixel_shuffle() -> Network:
    """Super-resolution: depth to space, and an image added to its own enlargement."""
    params = {"a": drawn(w=(3, 3, 3, 8))["w"], "b": drawn(1, w=(3, 3, 8, 24))["w"], "c": drawn(2, w=(3, 3, 6, 3))["w"]}

    def fn(p: dict, x: jax.Array) -> jax.Array:
        conv = lambda x, w: jax.lax.conv_general_dilated(  # noqa: E731
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        n, h, w, _ = x.shape
        y = conv(jax.nn.relu(conv(x, p["a"])), p["b"])
        y = y.reshape(n, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, -1)
        return conv(jax.nn.relu(y), p["c"]) + jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)

    return Network(fn, params, (images(2, 6),), (images(3, 8),))


# Attention ------------------------------------------------------------------------------------------------------------


@network
def swin() -> Network:
    """Attention in windows, shifted in every second layer, with a table of relative positions; patches merged."""
    width, heads, window, depth = 12, 3, 4, 4
    params: dict[str, Any] = {"inp": drawn(w=(3, width))["w"], "out": drawn(1, w=(20, 5))["w"]}
    params["merge"] = drawn(2, w=(4 * width, 20))["w"]
    for i in range(2):
        own = drawn(3 + i, qkv=(width, 3 * width), proj=(width, width), up=(width, 18), down=(18, width))
        own |= drawn(7 + i, table=((2 * window - 1) ** 2, heads), scale=(width,), bias=(width,))
        params[f"layer_{i}"] = own
    at = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1).reshape(-1, 2)
    between = at[:, None] - at[None] + window - 1
    index = between[..., 0] * (2 * window - 1) + between[..., 1]

    def norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(square - mean**2 + 1e-5) * scale + bias

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["inp"]
        n, h, w, _ = x.shape
        for i in range(2):
            own = p[f"layer_{i}"]
            y = norm(x, own["scale"], own["bias"])
            y = jnp.roll(y, (-2, -2), (1, 2)) if i else y
            y = y.reshape(n, h // window, window, w // window, window, -1).transpose(0, 1, 3, 2, 4, 5)
            y = y.reshape(-1, window * window, width)
            q, k, v = (y @ own["qkv"]).reshape(-1, window * window, 3, heads, depth).transpose(2, 0, 3, 1, 4)
            bias = own["table"][index.reshape(-1)].reshape(window**2, window**2, heads).transpose(2, 0, 1)
            weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) * depth**-0.5 + bias)
            y = (weights @ v).transpose(0, 2, 1, 3).reshape(-1, window * window, heads * depth) @ own["proj"]
            y = y.reshape(n, h // window, w // window, window, window, -1).transpose(0, 1, 3, 2, 4, 5)
            y = y.reshape(n, h, w, -1)
            x = x + (jnp.roll(y, (2, 2), (1, 2)) if i else y)
            x = x + jax.nn.gelu(x @ own["up"]) @ own["down"]
        corners = [x[:, i::2, j::2] for i in range(2) for j in range(2)]
        return jax.nn.relu(jnp.concatenate(corners, -1) @ p["merge"]).mean((1, 2)) @ p["out"]

    return Network(fn, params, (images(2, 8),), (images(3, 12),))


class _Perceiver(nnx.Module):
    """Latents that are weights ask the inputs, then each other."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.latents = nnx.Param(jnp.zeros((5, 12)))
        self.cross = nnx.MultiHeadAttention(
            3, 12, qkv_features=9, in_kv_features=7, out_features=12, decode=False, rngs=rngs
        )
        self.own = nnx.MultiHeadAttention(2, 12, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(12, rngs=rngs) for _ in range(2)])
        self.up, self.down, self.head = (nnx.Linear(a, b, rngs=rngs) for a, b in ((12, 16), (16, 12), (12, 4)))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.broadcast_to(self.latents[...], (x.shape[0], 5, 12))
        y = y + self.cross(self.norms[0](y), x)
        y = y + self.own(self.norms[1](y))
        return self.head((y + self.down(nnx.gelu(self.up(y)))).mean(1))


@network
def perceiver() -> Network:
    return of_nnx(_Perceiver, normal(2, 6, 7), others=(normal(3, 9, 7),))


@network
def t5() -> Network:
    """Buckets of relative positions, RMSNorm without a bias, the head tied to the embedding."""
    width, heads, depth, buckets = 12, 3, 5, 8
    params: dict[str, Any] = drawn(embed=(20, width), positions=(buckets, heads), last=(width,))
    for i in range(2):
        params[f"layer_{i}"] = drawn(
            1 + i, q=(width, heads * depth), k=(width, heads * depth), v=(width, heads * depth),
            o=(heads * depth, width), up=(width, 14), gate=(width, 14), down=(14, width), a=(width,), b=(width,),
        )  # fmt: skip

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * scale

    def fn(p: dict, ids: jax.Array) -> jax.Array:
        x, length = p["embed"][ids], ids.shape[1]
        far = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length)[None])
        large = 4 + (jnp.log(jnp.maximum(far, 1) / 4) / np.log(4) * 4).astype(jnp.int32)
        bucket = jnp.where(far < 4, far, jnp.clip(large, 4, buckets - 1))
        bias = p["positions"][bucket].transpose(2, 0, 1)[None]
        for i in range(2):
            own = p[f"layer_{i}"]
            y = norm(x, own["a"])
            q, k, v = ((y @ own[n]).reshape(*ids.shape, heads, depth).transpose(0, 2, 1, 3) for n in ("q", "k", "v"))
            weights = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k) + bias)
            x = x + jnp.einsum("bhqk,bhkd->bqhd", weights, v).reshape(*ids.shape, heads * depth) @ own["o"]
            y = norm(x, own["b"])
            x = x + (jax.nn.gelu(y @ own["gate"]) * (y @ own["up"])) @ own["down"]
        return norm(x, p["last"]) * width**-0.5 @ p["embed"].T

    ids = lambda n, length: jnp.asarray(np.random.default_rng(n).integers(0, 20, (n, length)))  # noqa: E731
    return Network(fn, params, (ids(2, 7),), (ids(3, 11),))


@network
def einsum_transformer() -> Network:
    """Query, key and value in one kernel of five axes, RMSNorm, a gated linear unit with its halves in one kernel."""
    params: dict[str, Any] = drawn(inp=(6, 12), out=(12, 4), g=(12,))
    for i in range(2):
        own = drawn(1 + i, qkv=(12, 3, 4, 5), o=(4, 5, 12), glu=(12, 2, 9), down=(9, 12), a=(12,), b=(12,))
        params[f"block_{i}"] = own

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.einsum("btd,btd->bt", x, x)[..., None] / x.shape[-1] + 1e-6) * (1 + scale)

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = jnp.einsum("btf,fd->btd", x, p["inp"])
        for i in range(2):
            own = p[f"block_{i}"]
            q, k, v = jnp.einsum("btd,dchk->cbhtk", norm(x, own["a"]), own["qkv"])
            mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
            scores = jnp.where(mask, jnp.einsum("bhqk,bhsk->bhqs", q, k) / 5**0.5, -1e30)
            x = x + jnp.einsum("bhqs,bhsk,hkd->bqd", jax.nn.softmax(scores), v, own["o"])
            gate, up = jnp.moveaxis(jnp.einsum("btd,dgf->btgf", norm(x, own["b"]), own["glu"]), 2, 0)
            x = x + jnp.einsum("btf,fd->btd", jax.nn.sigmoid(gate) * up, own["down"])
        return jnp.einsum("btd,dc->btc", norm(x, p["g"]), p["out"])

    return Network(fn, params, (normal(2, 5, 6),), (normal(3, 8, 6),))


@network
def library_attention() -> Network:
    """jax.nn.dot_product_attention, causal, with keys and values for groups of heads."""
    params = drawn(inp=(6, 12), q=(12, 4, 5), k=(12, 2, 5), v=(12, 2, 5), o=(4, 5, 12), out=(12, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["inp"]
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in ("q", "k", "v"))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return jnp.tanh(x + jnp.einsum("bthk,hkd->btd", y, p["o"])) @ p["out"]

    return Network(fn, params, (normal(2, 5, 6),), (normal(3, 8, 6),))


@network
def linear_attention() -> Network:
    """Causal attention without a softmax: running sums of outer products of keys and values."""
    params = drawn(inp=(6, 12), q=(12, 3, 5), k=(12, 3, 5), v=(12, 3, 4), o=(3, 4, 12), out=(12, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["inp"]
        q, k = (jax.nn.elu(jnp.einsum("btd,dhk->bthk", x, p[name])) + 1 for name in ("q", "k"))
        v = jnp.einsum("btd,dhk->bthk", x, p["v"])
        state = jnp.cumsum(k[..., None] * v[..., None, :], axis=1)
        y = jnp.einsum("bthk,bthkv->bthv", q, state) / jnp.einsum("bthk,bthk->bth", q, jnp.cumsum(k, 1))[..., None]
        return (x + jnp.einsum("bthv,hvd->btd", y, p["o"])) @ p["out"]

    return Network(fn, params, (normal(2, 5, 6),), (normal(3, 8, 6),))


# Recurrent networks ---------------------------------------------------------------------------------------------------


@network
def lstm_both_ways() -> Network:
    """Two hand-written LSTMs, the four gates in one kernel, their states side by side."""
    params = {name: drawn(i, x=(4, 28), h=(7, 28), b=(28,)) for i, name in enumerate(("there", "back"))}
    params["head"] = drawn(2, w=(14, 3))

    def lstm(p: dict, x: jax.Array, reverse: bool) -> jax.Array:
        def step(carry: tuple, now: jax.Array) -> tuple:
            h, c = carry
            i, f, g, o = jnp.split(now @ p["x"] + h @ p["h"] + p["b"], 4, axis=-1)
            c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = (jnp.zeros((x.shape[0], 7)),) * 2
        return jax.lax.scan(step, start, x.swapaxes(0, 1), reverse=reverse)[1].swapaxes(0, 1)

    def fn(p: dict, x: jax.Array) -> jax.Array:
        return jnp.concatenate([lstm(p["there"], x, False), lstm(p["back"], x, True)], -1) @ p["head"]["w"]

    return Network(fn, params, (normal(2, 5, 4),), (normal(3, 8, 4),))


@network
def state_space() -> Network:
    """A diagonal state space under jax.lax.associative_scan, gated, as Mamba's."""
    params = drawn(inp=(4, 10), x=(10, 8), z=(10, 8), step=(10, 8), b=(10, 3), c=(10, 3), a=(8, 3), d=(8,), out=(8, 10),
                   head=(10, 3))  # fmt: skip

    def fn(p: dict, u: jax.Array) -> jax.Array:
        u = u @ p["inp"]
        x, z, dt = jax.nn.silu(u @ p["x"]), jax.nn.silu(u @ p["z"]), jax.nn.softplus(u @ p["step"])
        decay = jnp.exp(-dt[..., None] * jnp.exp(p["a"]))
        push = (dt * x)[..., None] * (u @ p["b"])[..., None, :]
        merge = lambda left, right: (left[0] * right[0], left[1] * right[0] + right[1])  # noqa: E731
        state = jax.lax.associative_scan(merge, (decay, push), axis=1)[1]
        y = jnp.einsum("btds,bts->btd", state, u @ p["c"]) + x * p["d"]
        return (u + (y * z) @ p["out"]) @ p["head"]

    return Network(fn, params, (normal(2, 5, 4),), (normal(3, 8, 4),))


# Others ---------------------------------------------------------------------------------------------------------------


class _Siamese(eqx.Module):
    encoder: eqx.nn.MLP
    head: eqx.nn.Linear

    def __call__(self, pair: jax.Array) -> jax.Array:
        a, b = self.encoder(pair[0]), self.encoder(pair[1])
        return self.head(jax.nn.relu(jnp.concatenate([jnp.abs(a - b), a * b, a])))


@network
def siamese() -> Network:
    def make(key: jax.Array) -> eqx.Module:
        return _Siamese(eqx.nn.MLP(4, 6, 10, 2, key=key), eqx.nn.Linear(18, 2, key=key))

    return of_equinox(make, normal(2, 2, 4), others=(normal(5, 2, 4),))


@network
def switch_experts() -> Network:
    """Top-1 of 4 experts, by a one-hot of the largest gate."""
    params = drawn(inp=(6, 8), gate=(8, 4), up=(4, 8, 10), bias=(4, 10), down=(4, 10, 8), last=(8, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["inp"]
        gates = jax.nn.softmax(x @ p["gate"])
        chosen = jax.nn.one_hot(jnp.argmax(gates, -1), 4)
        hidden = jax.nn.gelu(jnp.einsum("be,bw,ewf->bef", chosen, x, p["up"]) + p["bias"])
        y = jnp.einsum("bef,efw,be->bw", hidden, p["down"], chosen * gates)
        return (x + y) @ p["last"]

    return Network(fn, params, (normal(3, 6),), (normal(5, 6),))


@network
def graph_convolution() -> Network:
    """Two layers over a given adjacency, by degrees, the nodes' features averaged."""
    params = drawn(a=(5, 9), a_bias=(9,), b=(9, 7), own=(9, 7), c=(7, 3))

    def fn(p: dict, x: jax.Array, adjacency: jax.Array) -> jax.Array:
        adjacency = adjacency + jnp.eye(adjacency.shape[0])
        scale = jax.lax.rsqrt(adjacency.sum(-1))
        adjacency = scale[:, None] * adjacency * scale
        x = jax.nn.relu(adjacency @ (x @ p["a"]) + p["a_bias"])
        x = jax.nn.relu(adjacency @ x @ p["b"] + x @ p["own"])
        return x.mean(0) @ p["c"]

    def example(nodes: int) -> tuple:
        links = (np.random.default_rng(nodes).random((nodes, nodes)) < 0.4).astype(np.float32)
        return normal(nodes, 5), jnp.asarray(np.maximum(links, links.T))

    return Network(fn, params, example(6), example(9))


@network
def tied_autoencoder() -> Network:
    params = drawn(a=(6, 10), a_bias=(10,), b=(10, 4), b_bias=(4,), back=(10,), out=(6,))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        code = jax.nn.relu(jax.nn.relu(x @ p["a"] + p["a_bias"]) @ p["b"] + p["b_bias"])
        return jax.nn.relu(code @ p["b"].T + p["back"]) @ p["a"].T + p["out"]

    return Network(fn, params, (normal(2, 6),), (normal(5, 6),))


@network
def ensemble() -> Network:
    """Four networks, their weights stacked, under vmap."""
    params = drawn(a=(4, 6, 10), a_bias=(4, 10), b=(4, 10, 7), c=(4, 7, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        one = lambda p: jax.nn.relu(jax.nn.relu(x @ p["a"] + p["a_bias"]) @ p["b"]) @ p["c"]  # noqa: E731
        return jax.vmap(one)(p).mean(0)

    return Network(fn, params, (normal(2, 6),), (normal(5, 6),))


@network
def weight_normalised() -> Network:
    """Kernels as a direction and a length, low-rank updates beside, a maxout and a highway."""
    params = drawn(a=(6, 10), length=(10,), down=(6, 3), up=(3, 10), b=(10, 3, 8), t=(8, 8), h=(8, 8), c=(8, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        kernel = p["a"] * jax.lax.rsqrt(jnp.sum(p["a"] ** 2, axis=0) + 1e-6) * p["length"]
        x = jax.nn.relu(x @ (kernel + 0.5 * p["down"] @ p["up"]))
        x = jnp.einsum("bi,ikj->bkj", x, p["b"]).max(1)
        gate = jax.nn.sigmoid(x @ p["t"] - 1)
        return (gate * jnp.tanh(x @ p["h"]) + (1 - gate) * x) @ p["c"]

    return Network(fn, params, (normal(2, 6),), (normal(5, 6),))


@network
def batch_statistics() -> Network:
    """A BatchNorm in training, standardised kernels, and features normalised to length 1 before a cosine head."""
    params = drawn(a=(6, 10), scale=(10,), bias=(10,), b=(10, 8), prototypes=(3, 8))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["a"]
        x = jax.nn.relu((x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + 1e-5) * p["scale"] + p["bias"]) @ p["b"]
        x = x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)  # with few units left some rows are 0
        return 10 * x @ (p["prototypes"] / jnp.linalg.norm(p["prototypes"], axis=-1, keepdims=True)).T

    return Network(fn, params, (normal(4, 6),), (normal(5, 6),))
