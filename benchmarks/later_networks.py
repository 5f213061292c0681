"""Networks that were tried once the graph was whole, beside those of unseen_networks: all are in NETWORKS."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.graph_networks import Network, drawn, images, network, normal, of_equinox, of_linen
from benchmarks.unseen_networks import NETWORKS, of_nnx

__all__ = ["NETWORKS"]


def _conv(x: jax.Array, w: jax.Array, **options: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def _norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


# Convolutions ---------------------------------------------------------------------------------------------------------


class _Shuffle(nn.Module):
    """ShuffleNet: convolutions in groups, channels shuffled between them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(12, (3, 3), name="stem")(x))
        for i in range(2):
            y = nn.relu(nn.Conv(12, (1, 1), feature_group_count=3, name=f"first_{i}")(x))
            y = y.reshape(*y.shape[:-1], 3, 4).swapaxes(-1, -2).reshape(*y.shape)
            y = nn.Conv(12, (3, 3), feature_group_count=12, name=f"depthwise_{i}")(y)
            x = nn.relu(x + nn.Conv(12, (1, 1), feature_group_count=3, name=f"second_{i}")(y))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


@network
def shufflenet() -> Network:
    return of_linen(_Shuffle(), images(2, 8), others=(images(3, 10),))


class _Shuffle2(nn.Module):
    """ShuffleNetV2: half of the channels pass by, then the halves are interleaved."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        for i in range(2):
            left, y = jnp.split(x, 2, axis=-1)
            y = nn.relu(nn.Conv(6, (1, 1), name=f"first_{i}")(y))
            y = nn.relu(nn.Conv(4, (1, 1), name=f"second_{i}")(nn.Conv(6, (3, 3), feature_group_count=6)(y)))
            x = jnp.stack([left, y], axis=-1).reshape(*x.shape)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


@network
def shufflenet_v2() -> Network:
    return of_linen(_Shuffle2(), images(2, 8), others=(images(3, 10),))


class _Ghost(nn.Module):
    """GhostNet: half of the channels are cheap copies of the others; CBAM's attention over space after them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate((6, 8)):
            first = nn.relu(nn.Conv(width, (1, 1), name=f"first_{i}")(x))
            cheap = nn.relu(nn.Conv(width, (3, 3), feature_group_count=width, name=f"cheap_{i}")(first))
            x = jnp.concatenate([first, cheap], axis=-1)
            seen = jnp.stack([x.mean(-1), x.max(-1)], axis=-1)
            x = x * nn.sigmoid(nn.Conv(1, (3, 3), name=f"where_{i}")(seen))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


@network
def ghostnet() -> Network:
    return of_linen(_Ghost(), images(2, 8), others=(images(3, 10),))


class _Res2(nn.Module):
    """Res2Net: splits of the channels that feed each other; kernels chosen by attention; resized at the end."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        parts = jnp.split(nn.relu(nn.Conv(12, (1, 1), name="widen")(x)), 4, axis=-1)
        made = [parts[0]]
        for i, part in enumerate(parts[1:]):
            made.append(nn.relu(nn.Conv(3, (3, 3), name=f"scale_{i}")(part + (made[-1] if i else 0))))
        x = x + nn.Conv(8, (1, 1), name="join")(jnp.concatenate(made, axis=-1))
        ways = jnp.stack([nn.Conv(8, (k, k), name=f"kernel_{k}")(x) for k in (1, 3)], axis=1)
        seen = nn.relu(nn.Dense(5, name="seen")(ways.sum(1).mean((1, 2))))
        chosen = nn.softmax(jnp.stack([nn.Dense(8, name=f"chosen_{k}")(seen) for k in (1, 3)], axis=1), axis=1)
        x = (ways * chosen[:, :, None, None]).sum(1)
        x = jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], 8), "bilinear")
        return nn.Conv(2, (3, 3), name="head")(x)


@network
def res2net() -> Network:
    return of_linen(_Res2(), images(2, 6), others=(images(3, 8),))


class _Upwards(nnx.Module):
    """A generator: noise and a label's embedding to an image, the norms scaled by the label."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.labels = nnx.Embed(4, 5, rngs=rngs)
        self.inp = nnx.Linear(11, 4 * 4 * 8, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(n, use_running_average=True, rngs=rngs) for n in (8, 6)])
        self.films = nnx.List([nnx.Linear(5, 2 * n, rngs=rngs) for n in (8, 6)])
        self.ups = nnx.List([nnx.ConvTranspose(a, b, (3, 3), (2, 2), rngs=rngs) for a, b in ((8, 6), (6, 3))])

    def __call__(self, z: jax.Array, label: jax.Array) -> jax.Array:
        label = self.labels(label)
        x = self.inp(jnp.concatenate([z, label], axis=-1)).reshape(-1, 4, 4, 8)
        for norm, film, up in zip(self.norms, self.films, self.ups, strict=True):
            scale, shift = jnp.split(film(label)[:, None, None], 2, axis=-1)
            x = up(nnx.leaky_relu(norm(x) * (1 + scale) + shift, 0.2))
        return jnp.tanh(x)


@network
def generator() -> Network:
    return of_nnx(_Upwards, normal(2, 6), jnp.arange(2), others=(normal(3, 6), jnp.arange(3)))


@network
def modulated() -> Network:
    """StyleGAN2: kernels that a style scales for each example, then brought to length 1; noise is added."""
    params = drawn(style=(6, 8), style_bias=(8,), a=(8, 4), b=(8, 7), first=(3, 3, 4, 7), second=(3, 3, 7, 3))
    params |= drawn(1, start=(5, 5, 4), noise=(7,))

    def one(p: dict, z: jax.Array) -> jax.Array:
        style = jax.nn.leaky_relu(_norm(z) @ p["style"] + p["style_bias"])
        first = p["first"] * (style @ p["a"])[:, None]
        first = first * jax.lax.rsqrt((first**2).sum((0, 1, 2)) + 1e-6)
        x = _conv(p["start"][None], first)
        x = jax.nn.leaky_relu(x + p["noise"] * jnp.sin(jnp.arange(5.0))[:, None, None])
        return _conv(x, p["second"] * (style @ p["b"])[:, None])[0]

    return Network(lambda p, z: jax.vmap(one, (None, 0))(p, z), params, (normal(2, 6),), (normal(3, 6),))


@network
def spatial_transformer() -> Network:
    """Sampled where a network says, between pixels."""
    params = drawn(a=(3, 3, 3, 6), b=(6, 6), conv=(3, 3, 6, 7), head=(7, 4))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(_conv(x, p["a"]))
        side = x.shape[1]
        theta = (x.mean((1, 2)) @ p["b"]).reshape(-1, 2, 3)
        at = jnp.stack([*jnp.meshgrid(jnp.arange(side), jnp.arange(side), indexing="ij"), jnp.ones((side, side))], -1)
        at = jnp.einsum("bij,hwj->ibhw", theta, at)
        sample = lambda image, where: jax.scipy.ndimage.map_coordinates(image, where, order=1, mode="nearest")  # noqa: E731
        channels = jax.vmap(sample, (-1, None), -1)
        return jax.nn.relu(_conv(jax.vmap(channels, (0, 1))(x, at), p["conv"])).mean((1, 2)) @ p["head"]

    return Network(fn, params, (images(2, 6),), (images(3, 7),))


# Attention ------------------------------------------------------------------------------------------------------------


class _Conformer(nnx.Module):
    """Half-steps of feed-forward around attention and a gated depthwise convolution."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        linear = functools.partial(nnx.Linear, rngs=rngs)
        self.inp, self.ups = linear(5, 12), nnx.List([linear(12, 18) for _ in range(2)])
        self.downs = nnx.List([linear(18, 12) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(3, 12, decode=False, rngs=rngs)
        self.wide, self.narrow, self.head = linear(12, 20), linear(10, 12), linear(12, 4)
        self.depthwise = nnx.Conv(10, 10, (3,), feature_group_count=10, rngs=rngs)
        self.batch = nnx.BatchNorm(10, use_running_average=True, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(12, rngs=rngs) for _ in range(4)])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.inp(x)
        x = x + 0.5 * self.downs[0](nnx.silu(self.ups[0](self.norms[0](x))))
        x = x + self.attention(self.norms[1](x))
        y = nnx.glu(self.wide(self.norms[2](x)))
        x = x + self.narrow(nnx.silu(self.batch(self.depthwise(y))))
        x = x + 0.5 * self.downs[1](nnx.silu(self.ups[1](x)))
        return nnx.log_softmax(self.head(self.norms[3](x)))


@network
def conformer() -> Network:
    return of_nnx(_Conformer, normal(2, 6, 5), others=(normal(3, 8, 5),))


@network
def retnet() -> Network:
    """Retention: no softmax, a decay per head, heads normalised in groups, a gate."""
    width, heads, depth = 12, 3, 4
    names = ("q", "k", "v", "gate")
    params = drawn(inp=(5, width), out=(width, 4), o=(width, width), **dict.fromkeys(names, (width, width)))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["inp"]
        b, t, _ = x.shape
        q, k, v = ((_norm(x) @ p[n]).reshape(b, t, heads, depth) for n in names[:3])
        gap = jnp.arange(t)[:, None] - jnp.arange(t)
        gamma = 1 - 2.0 ** (-5 - jnp.arange(heads))
        decay = jnp.where(gap >= 0, gamma[:, None, None] ** jnp.maximum(gap, 0), 0)
        y = jnp.einsum("bhqk,bkhd->bqhd", jnp.einsum("bqhd,bkhd->bhqk", q, k) * decay, v)
        y = _norm(y).reshape(b, t, width)
        return (x + (jax.nn.silu(x @ p["gate"]) * y) @ p["o"]) @ p["out"]

    return Network(fn, params, (normal(2, 5, 5),), (normal(3, 7, 5),))


@network
def rwkv() -> Network:
    """Tokens mixed with the one before, an exponential average of values kept in a scan, squared ReLUs."""
    width = 10
    params = drawn(embed=(20, width), k=(width, 8), v=(width, 8), r=(width, 8), o=(8, width), decay=(8,), first=(8,))
    params |= drawn(1, mix=(3, width), up=(width, 14), down=(14, width), gate=(width, width), head=(width, 20))

    def fn(p: dict, ids: jax.Array) -> jax.Array:
        x = p["embed"][ids]
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        k, v, r = (
            (x * jax.nn.sigmoid(m) + before * (1 - jax.nn.sigmoid(m))) @ p[n]
            for n, m in zip("kvr", p["mix"], strict=True)
        )

        def step(carry: tuple, now: tuple) -> tuple:
            above, below, most = carry
            k, v = now
            top = jnp.maximum(most, k + p["first"])
            a, b = jnp.exp(most - top), jnp.exp(k + p["first"] - top)
            out = (a * above + b * v) / (a * below + b)
            decayed = most - jnp.exp(p["decay"])
            top = jnp.maximum(decayed, k)
            a, b = jnp.exp(decayed - top), jnp.exp(k - top)
            return (a * above + b * v, a * below + b, top), out

        start = (jnp.zeros_like(k[:, 0]), jnp.zeros_like(k[:, 0]), jnp.full_like(k[:, 0], -1e30))
        y = jax.lax.scan(step, start, (k.swapaxes(0, 1), v.swapaxes(0, 1)))[1].swapaxes(0, 1)
        x = x + (jax.nn.sigmoid(r) * y) @ p["o"]
        x = x + jax.nn.sigmoid(x @ p["gate"]) * (jnp.square(jax.nn.relu(x @ p["up"])) @ p["down"])
        return x @ p["head"]

    ids = lambda b, t: jnp.arange(b * t).reshape(b, t) * 7 % 20  # noqa: E731
    return Network(fn, params, (ids(2, 5),), (ids(3, 7),))


@network
def vmapped_heads() -> Network:
    """One head's function under vmap over stacked weights, with a bias by distance and a soft cap."""
    params = drawn(inp=(5, 12), q=(3, 12, 4), k=(3, 12, 4), v=(3, 12, 6), o=(3, 6, 12), out=(12, 2), slope=(3,))

    def head(q: jax.Array, k: jax.Array, v: jax.Array, o: jax.Array, slope: jax.Array, x: jax.Array) -> jax.Array:
        t = x.shape[-2]
        gap = jnp.abs(jnp.arange(t)[:, None] - jnp.arange(t))
        scores = 5 * jnp.tanh((x @ q) @ (x @ k).swapaxes(-1, -2) / 5) - jax.nn.softplus(slope) * gap
        return jax.nn.softmax(jnp.where(gap < 4, scores, -1e9)) @ (x @ v) @ o

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["inp"]
        heads = jax.vmap(head, (0, 0, 0, 0, 0, None))(*(p[n] for n in ("q", "k", "v", "o", "slope")), x)
        return (x + heads.sum(0)) @ p["out"]

    return Network(fn, params, (normal(2, 5, 5),), (normal(3, 7, 5),))


@network
def cached_decoder() -> Network:
    """A step of decoding: keys and values of one head written into caches, queries and keys normalised."""
    width, heads, depth = 12, 3, 4
    params = drawn(embed=(20, width), q=(width, heads * depth), kv=(width, 2 * depth), o=(heads * depth, width))
    params |= drawn(1, up=(width, 2, 9), down=(9, width))

    def fn(p: dict, token: jax.Array, at: jax.Array) -> dict:
        x = p["embed"][token] * width**0.5
        q = _norm((x @ p["q"]).reshape(-1, heads, depth))
        k, v = jnp.split(x @ p["kv"], 2, axis=-1)
        empty = jnp.zeros((x.shape[0], 8, depth))
        keys = jax.lax.dynamic_update_slice(empty, _norm(k)[:, None], (0, at, 0))
        values = jax.lax.dynamic_update_slice(empty, v[:, None], (0, at, 0))
        scores = jnp.where(jnp.arange(8) <= at, jnp.einsum("bhd,btd->bht", q, keys), -jnp.inf)
        y = jnp.einsum("bht,btd->bhd", jax.nn.softmax(scores), values).reshape(-1, heads * depth) @ p["o"]
        gate, up = jnp.moveaxis(jnp.einsum("bw,wif->bif", _norm(x), p["up"]), 1, 0)
        x = x + y + (jax.nn.gelu(gate) * up) @ p["down"]  # side by side, as PaLM's
        return {"logits": 30 * jnp.tanh(_norm(x) @ p["embed"].T / 30), "step": at + 1}

    return Network(fn, params, (jnp.arange(2), jnp.int32(0)), (jnp.arange(3), jnp.int32(3)))


class _AdaptiveBlock(nn.Module):
    """DiT: scales, shifts and gates of a block out of one layer."""

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        parts = jnp.split(nn.Dense(6 * 12, name="modulation")(nn.silu(c))[:, None], 6, axis=-1)
        norm = functools.partial(nn.LayerNorm, use_bias=False, use_scale=False)
        y = norm()(x) * (1 + parts[0]) + parts[1]
        x = x + parts[2] * nn.MultiHeadDotProductAttention(3, name="attention")(y, y)
        y = norm()(x) * (1 + parts[3]) + parts[4]
        return x + parts[5] * nn.Dense(12, name="down")(nn.gelu(nn.Dense(16, name="up")(y)))


class _Diffusion(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        b, side, _, _ = x.shape
        waves = t[:, None] * jnp.exp(-jnp.arange(4.0))
        c = nn.Dense(10, name="time_0")(jnp.concatenate([jnp.cos(waves), jnp.sin(waves)], axis=-1))
        c = nn.Dense(10, name="time_1")(nn.silu(c))
        y = nn.Conv(12, (2, 2), (2, 2), name="patches")(x).reshape(b, -1, 12)
        for i in range(2):
            y = nn.remat(_AdaptiveBlock)(name=f"block_{i}")(y, c)
        y = nn.Dense(2 * 2 * 3, name="head")(y).reshape(b, side // 2, side // 2, 2, 2, 3)
        return jnp.einsum("bhwpqc->bhpwqc", y).reshape(x.shape)


@network
def diffusion() -> Network:
    return of_linen(_Diffusion(), images(2, 4), jnp.ones(2), others=(images(3, 6), 2 * jnp.ones(3)))


# Routed, pooled and sampled -------------------------------------------------------------------------------------------


@network
def routed_experts() -> Network:
    """Top-2 of 4 experts, each with room for so many tokens: dispatched and combined by einsum, as GShard's."""
    params = drawn(inp=(6, 8), gate=(8, 4), up=(4, 8, 10), down=(4, 10, 8), last=(8, 3))

    def fn(p: dict, x: jax.Array) -> dict:
        x, room = x @ p["inp"], 3
        gates = jax.nn.softmax(x @ p["gate"])
        best, chosen = jax.lax.top_k(gates, 2)
        mask = jax.nn.one_hot(chosen, 4)
        place = (jnp.cumsum(mask.reshape(-1, 4), 0) - 1).reshape(mask.shape) * mask
        mask = mask * (place < room)
        slots = mask[..., None] * jax.nn.one_hot(place, room)
        combine = jnp.einsum("tk,tker->ter", best / best.sum(-1, keepdims=True), slots)
        inside = jnp.einsum("ter,tw->erw", (combine > 0).astype(x.dtype), x)
        outside = jnp.einsum("erf,efw->erw", jax.nn.relu(jnp.einsum("erw,ewf->erf", inside, p["up"])), p["down"])
        return {"y": (x + jnp.einsum("ter,erw->tw", combine, outside)) @ p["last"], "load": mask.mean((0, 1))}

    return Network(fn, params, (normal(5, 6),), (normal(7, 6),))


@network
def gathered_experts() -> Network:
    """The weights of the two best experts of each token, fetched by index."""
    params = drawn(gate=(6, 4), up=(4, 6, 10), bias=(4, 10), down=(4, 10, 6), last=(6, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        best, chosen = jax.lax.top_k(x @ p["gate"], 2)
        hidden = jax.nn.silu(jnp.einsum("tw,tkwf->tkf", x, p["up"][chosen]) + p["bias"][chosen])
        return jnp.einsum("tk,tkf,tkfw->tw", jax.nn.softmax(best), hidden, p["down"][chosen]) @ p["last"]

    return Network(fn, params, (normal(3, 6),), (normal(5, 6),))


@network
def graph_attention() -> Network:
    """Messages along edges, weighted by a softmax over the edges of each node, by segments."""
    params = drawn(a=(5, 9), left=(9,), right=(9,), edge=(2, 9), out=(9, 7), head=(7, 3))

    def fn(p: dict, x: jax.Array, sender: jax.Array, receiver: jax.Array, edges: jax.Array) -> jax.Array:
        x, nodes = x @ p["a"], x.shape[0]
        score = jax.nn.leaky_relu(x[sender] @ p["left"] + x[receiver] @ p["right"])
        most = jax.ops.segment_max(score, receiver, nodes)
        weight = jnp.exp(score - jnp.where(jnp.isfinite(most), most, 0)[receiver])
        total = jax.ops.segment_sum(weight, receiver, nodes)
        message = jax.nn.relu(x[sender] + edges @ p["edge"]) * weight[:, None]
        x = jax.ops.segment_sum(message, receiver, nodes) / (total[:, None] + 1e-6)
        return jax.nn.relu(x @ p["out"]).mean(0) @ p["head"]

    def example(nodes: int) -> tuple:
        at = jnp.arange(2 * nodes)
        return normal(nodes, 5), at % nodes, (3 * at + 1) % nodes, normal(2 * nodes, 2)

    return Network(fn, params, example(6), example(9))


class _Sets(eqx.Module):
    """DeepSets: items with a mask, encoded by themselves, pooled three ways."""

    encoder: eqx.nn.MLP
    norm: eqx.nn.LayerNorm
    head: eqx.nn.MLP

    def __call__(self, items: jax.Array, mask: jax.Array) -> jax.Array:
        encoded = jax.vmap(self.encoder)(items)
        total = jnp.where(mask[:, None], encoded, 0).sum(0)
        most = jnp.where(mask[:, None], encoded, -1e9).max(0)
        return self.head(jnp.concatenate([self.norm(total), total / mask.sum(), most]))


@network
def deep_sets() -> Network:
    def make(key: jax.Array) -> eqx.Module:
        a, b = jax.random.split(key)
        return _Sets(eqx.nn.MLP(4, 6, 10, 1, key=a), eqx.nn.LayerNorm(6), eqx.nn.MLP(18, 3, 8, 1, key=b))

    return of_equinox(make, normal(2, 5, 4), jnp.arange(10).reshape(2, 5) % 3 > 0,
                      others=(normal(3, 5, 4), jnp.arange(15).reshape(3, 5) % 4 > 0))  # fmt: skip


@network
def quantised_codes() -> Network:
    """VQ-VAE: the nearest code of a book in the place of each code, the gradient passed through."""
    params = drawn(a=(6, 10), a_bias=(10,), b=(10, 4), book=(7, 4), c=(4, 9), c_bias=(9,), d=(9, 6))

    def fn(p: dict, x: jax.Array) -> dict:
        code = jax.nn.relu(x @ p["a"] + p["a_bias"]) @ p["b"]
        far = (code**2).sum(-1, keepdims=True) - 2 * code @ p["book"].T + (p["book"] ** 2).sum(-1)
        nearest = p["book"][jnp.argmin(far, -1)]
        loss = jnp.mean((jax.lax.stop_gradient(nearest) - code) ** 2) + jnp.mean((nearest - code) ** 2)
        code = code + jax.lax.stop_gradient(nearest - code)
        return {"image": jax.nn.relu(code @ p["c"] + p["c_bias"]) @ p["d"], "loss": loss}

    return Network(fn, params, (normal(2, 6),), (normal(5, 6),))


@network
def variational() -> Network:
    """A VAE with a drawn code: what is returned is a tree."""
    params = drawn(a=(6, 10), mean=(10, 4), scale=(10, 4), c=(4, 9), c_bias=(9,), d=(9, 6))

    def fn(p: dict, key: jax.Array, x: jax.Array) -> dict:
        hidden = jax.nn.relu(x @ p["a"])
        mean, scale = hidden @ p["mean"], jax.nn.softplus(hidden @ p["scale"])
        code = mean + scale * jax.random.normal(key, mean.shape)
        return {"image": jax.nn.elu(code @ p["c"] + p["c_bias"]) @ p["d"], "code": (mean.sum(), jnp.log(scale).mean())}

    return Network(fn, params, (jax.random.key(0), normal(2, 6)), (jax.random.key(1), normal(5, 6)))
