"""Small networks of many kinds, to read as graphs: what tests/test_graph.py cuts and benchmarks/graph_table.py lists.

Each is made with every weight random, biases, scales and statistics too, so that nothing is 0 that is not closed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from prune_jax.models.bert import Bert, BertConfig
from prune_jax.models.decoder import Decoder, DecoderConfig
from prune_jax.models.lenet import GEOMETRIES, LeNet
from prune_jax.pruning import trees

Tree = Any


class Network(NamedTuple):
    """A function of (params, *inputs) with params and inputs to trace it at, and inputs of another size."""

    fn: Callable[..., Any]
    params: Tree
    inputs: tuple
    others: tuple


NETWORKS: dict[str, Callable[[], Network]] = {}


def network(make: Callable[[], Network]) -> Callable[[], Network]:
    """Registers a constructor under its name; what it makes is kept."""
    NETWORKS[make.__name__] = kept = functools.cache(make)
    return kept


def randomised(params: Tree, seed: int = 0) -> Tree:
    """A tree of arrays or shapes with every floating leaf random, also biases, scales and statistics."""
    rng = np.random.default_rng(seed)

    def leaf(path: tuple, value: Any) -> Any:
        if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        name = trees.name(path).split("/")[-1]
        if name == "var":
            return jnp.asarray(rng.uniform(0.5, 1.5, value.shape), value.dtype)
        middle, width = (1.0, 0.2) if name == "scale" else (0.0, 0.2)
        if len(value.shape) > 1:
            width = 1.5 * max(np.prod(value.shape) / max(value.shape), 1) ** -0.5
        return jnp.asarray(middle + width * rng.standard_normal(value.shape), value.dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def normal(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def drawn(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.standard_normal(shape) * max(np.prod(shape[:-1]), 1) ** -0.5, jnp.float32)
        for name, shape in shapes.items()
    }


def of_linen(module: nn.Module, *inputs: Any, others: tuple, closed: bool = False, **kwargs: Any) -> Network:
    """A linen module; closed: batch_stats closed over, where else they are part of the params."""
    variables = dict(randomised(jax.eval_shape(functools.partial(module.init, **kwargs), jax.random.key(0), *inputs)))
    variables.pop("gates", None)
    if set(variables) == {"params"}:
        return Network(lambda p, *x: module.apply({"params": p}, *x, **kwargs), variables["params"], inputs, others)
    if closed:
        stats = variables["batch_stats"]
        fn = lambda p, *x: module.apply({"params": p, "batch_stats": stats}, *x, **kwargs)  # noqa: E731
        return Network(fn, variables["params"], inputs, others)
    return Network(lambda p, *x: module.apply(p, *x, **kwargs), variables, inputs, others)


def images(batch: int, side: int, channels: int = 3) -> jax.Array:
    return normal(batch, side, side, channels)


# This package's own ---------------------------------------------------------------------------------------------------


@network
def bert() -> Network:
    module = Bert(BertConfig(vocab_size=50, num_layers=2, d_model=24, num_heads=4, d_ff=20, dropout=0.0))

    def batch(size: int, length: int) -> tuple:
        rng = np.random.default_rng(size)
        ids = jnp.asarray(rng.integers(0, 50, (size, length)), jnp.int32)
        return ids, ids % 2, jnp.asarray(np.arange(length)[None] < rng.integers(2, length, (size, 1)), jnp.int32)

    return of_linen(module, *batch(2, 7), others=batch(3, 11))


@network
def lenet_300_100() -> Network:
    module = LeNet(GEOMETRIES["lenet_300_100"], (12, 12, 1), 10)
    return of_linen(module, images(2, 12, 1), others=(images(5, 12, 1),))


@network
def lenet5_caffe() -> Network:
    module = LeNet(GEOMETRIES["lenet5_caffe"], (20, 20, 1), 10)
    return of_linen(module, images(2, 20, 1), others=(images(3, 20, 1),))


@network
def decoder() -> Network:
    """Keys and values for groups of heads, biases as Qwen's, the head tied to the embedding."""
    module = Decoder(DecoderConfig(20, 2, 24, 6, 2, 4, 20, qkv_bias=True, tied=True))
    ids = lambda n, length: jnp.asarray(np.random.default_rng(n).integers(0, 20, (n, length)), jnp.int32)  # noqa: E731
    return of_linen(module, ids(2, 7), others=(ids(3, 11),))


# Transformers ---------------------------------------------------------------------------------------------------------


class _NnxBlock(nnx.Module):
    def __init__(self, width: int, heads: int, ffn: int, rngs: nnx.Rngs) -> None:
        self.norm_1, self.norm_2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, ffn, rngs=rngs), nnx.Linear(ffn, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm_1(x))
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class _NnxTransformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(6, 24, rngs=rngs)
        self.blocks = nnx.List([_NnxBlock(24, 4, 20, rngs) for _ in range(2)])
        self.head = nnx.Linear(24, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=1))


@network
def nnx_transformer() -> Network:
    graphdef, params = nnx.split(nnx.eval_shape(lambda: _NnxTransformer(nnx.Rngs(0))))
    fn = lambda p, x: nnx.merge(graphdef, p)(x)  # noqa: E731
    return Network(fn, randomised(params), (normal(2, 5, 6),), (normal(3, 8, 6),))


class _LinenBlock(nn.Module):
    heads: int = 4
    ffn: int = 20
    fast: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.LayerNorm, use_fast_variance=self.fast)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(norm(name="norm_1")(x))
        y = nn.gelu(nn.Dense(self.ffn, name="up")(norm(name="norm_2")(x)))
        return x + nn.Dense(x.shape[-1], name="down")(y)


class _LinenTransformer(nn.Module):
    fast: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(24, name="embed")(x)
        for i in range(2):
            x = _LinenBlock(fast=self.fast, name=f"block_{i}")(x)
        return nn.Dense(5, name="head")(x)


@network
def linen_transformer() -> Network:
    return of_linen(_LinenTransformer(), normal(2, 5, 6), others=(normal(3, 8, 6),))


@network
def slow_variance() -> Network:
    return of_linen(_LinenTransformer(fast=False), normal(2, 5, 6), others=(normal(3, 8, 6),))


class _ViT(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(16, (4, 4), (4, 4), name="patches")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.param("token", nn.initializers.zeros, (1, 1, 16))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x += self.param("position", nn.initializers.zeros, (1, x.shape[1], 16))
        for i in range(2):
            x = _LinenBlock(4, 12, name=f"block_{i}")(x)
        return nn.Dense(5, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


@network
def vit() -> Network:
    return of_linen(_ViT(), images(2, 12), others=(images(3, 12),))


class _Mixer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(16, (4, 4), (4, 4), name="patches")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for i in range(2):
            y = nn.LayerNorm(name=f"norm_{i}_tokens")(x).swapaxes(1, 2)
            y = nn.Dense(x.shape[1], name=f"tokens_{i}_down")(nn.gelu(nn.Dense(7, name=f"tokens_{i}_up")(y)))
            x = x + y.swapaxes(1, 2)
            y = nn.Dense(20, name=f"channels_{i}_up")(nn.LayerNorm(name=f"norm_{i}_channels")(x))
            x = x + nn.Dense(16, name=f"channels_{i}_down")(nn.gelu(y))
        return nn.Dense(5, name="head")(x.mean(axis=1))


@network
def mlp_mixer() -> Network:
    return of_linen(_Mixer(), images(2, 12), others=(images(3, 12),))


def _rms(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def _rotated(x: jax.Array, interleaved: bool) -> jax.Array:
    """RoPE over (batch, length, ..., depth): pairs are halves of the depth, or neighbours."""
    depth, length = x.shape[-1], x.shape[1]
    angles = jnp.arange(length)[:, None] * 100.0 ** (-jnp.arange(0, depth, 2) / depth)
    angles = angles.reshape(length, *[1] * (x.ndim - 3), depth // 2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
    cos, sin = jnp.concatenate([cos, cos], -1), jnp.concatenate([sin, sin], -1)
    a, b = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-b, a], axis=-1) * sin


def _llama_block(p: dict, x: jax.Array, interleaved: bool) -> jax.Array:
    batch, length, _ = x.shape
    y = _rms(x, p["norm_1"])
    q = (y @ p["q"]).reshape(batch, length, 2, 3, 8)  # 2 key heads, each of 3 queries
    k, v = ((y @ p[name]).reshape(batch, length, 2, 8) for name in "kv")
    q, k = _rotated(q, interleaved), _rotated(k, interleaved)
    scores = jnp.einsum("bqgnd,bkgd->bgnqk", q, k) * 8**-0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    mixed = jnp.einsum("bgnqk,bkgd->bqgnd", jax.nn.softmax(scores), v).reshape(batch, length, 48)
    x = x + mixed @ p["o"]
    y = _rms(x, p["norm_2"])
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


_LLAMA = {
    "norm_1": (24,),
    "q": (24, 48),
    "k": (24, 16),
    "v": (24, 16),
    "o": (48, 24),
    "norm_2": (24,),
    "gate": (24, 20),
    "up": (24, 20),
    "down": (20, 24),
}


def _tokens(batch: int, length: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(length).integers(0, 30, (batch, length)), jnp.int32)


def _llama(interleaved: bool, scanned: bool) -> Network:
    block = functools.partial(_llama_block, interleaved=interleaved)
    if scanned:
        layers = drawn(**{name: (2, *shape) for name, shape in _LLAMA.items()})
    else:
        layers = {f"layer_{i}": drawn(i, **_LLAMA) for i in range(2)}

    def fn(p: dict, ids: jax.Array) -> jax.Array:
        x = p["embedding"][ids]
        if scanned:
            x, _ = jax.lax.scan(lambda x, layer: (block(layer, x), None), x, p["layers"])
        else:
            for layer in p["layers"].values():
                x = block(layer, x)
        return _rms(x, p["norm"]) @ p["embedding"].T

    params = {"embedding": normal(30, 24), "layers": layers, "norm": 1 + 0.1 * normal(24)}
    return Network(fn, params, (_tokens(2, 6),), (_tokens(3, 9),))


@network
def llama() -> Network:
    return _llama(False, False)


@network
def llama_interleaved() -> Network:
    return _llama(True, False)


@network
def llama_scanned() -> Network:
    return _llama(False, True)


# Convolutions ---------------------------------------------------------------------------------------------------------


class _Residual(nn.Module):
    """A block of ResNet-18 (two 3x3) or, with a bottleneck, of ResNet-50."""

    features: int
    strides: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        conv = functools.partial(nn.Conv, use_bias=False)
        out = self.features * (4 if self.bottleneck else 1)
        strides = (self.strides, self.strides)
        if self.bottleneck:
            y = nn.relu(norm(name="norm_1")(conv(self.features, (1, 1), name="conv_1")(x)))
            y = nn.relu(norm(name="norm_2")(conv(self.features, (3, 3), strides, name="conv_2")(y)))
            y = norm(name="norm_3")(conv(out, (1, 1), name="conv_3")(y))
        else:
            y = nn.relu(norm(name="norm_1")(conv(out, (3, 3), strides, name="conv_1")(x)))
            y = norm(name="norm_2")(conv(out, (3, 3), name="conv_2")(y))
        if x.shape != y.shape:
            x = norm(name="norm_side")(conv(out, (1, 1), strides, name="side")(x))
        return nn.relu(x + y)


class _ResNet(nn.Module):
    bottleneck: bool
    blocks: tuple[int, ...] = (2, 2, 2, 2)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = nn.BatchNorm(use_running_average=True, name="norm")
        x = nn.relu(norm(nn.Conv(8, (3, 3), use_bias=False, name="stem")(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                strides = 2 if stage and not i else 1
                x = _Residual(4 * 2**stage, strides, self.bottleneck, name=f"stage_{stage}_{i}")(x)
        return nn.Dense(5, name="head")(x.mean(axis=(1, 2)))


@network
def resnet18() -> Network:
    return of_linen(_ResNet(False), images(2, 16), others=(images(3, 24),))


@network
def resnet50() -> Network:
    return of_linen(_ResNet(True, (2, 1, 2, 1)), images(2, 16), others=(images(3, 24),), closed=True)


class _MobileNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = jax.nn.relu6(norm(name="norm")(nn.Conv(8, (3, 3), name="stem")(x)))
        for i, (out, strides) in enumerate([(8, 1), (12, 2), (12, 1)]):
            y = jax.nn.relu6(norm(name=f"norm_{i}_up")(nn.Conv(16, (1, 1), name=f"up_{i}")(x)))
            y = nn.Conv(16, (3, 3), (strides, strides), feature_group_count=16, name=f"depthwise_{i}")(y)
            y = jax.nn.relu6(norm(name=f"norm_{i}_depthwise")(y))
            y = norm(name=f"norm_{i}_down")(nn.Conv(out, (1, 1), name=f"down_{i}")(y))
            x = x + y if x.shape == y.shape else y
        y = nn.Conv(24, (3, 3), feature_group_count=12, name="multiplied")(x)
        y = nn.Conv(18, (3, 3), feature_group_count=6, name="grouped")(nn.relu(y))
        return nn.Dense(5, name="head")(nn.relu(y).mean(axis=(1, 2)))


@network
def mobilenet() -> Network:
    return of_linen(_MobileNet(), images(2, 8), others=(images(3, 12),))


class _UNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        left = []
        for i, width in enumerate((6, 8)):
            x = nn.relu(nn.Conv(width, (3, 3), name=f"down_{i}")(x))
            left.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(10, (3, 3), name="middle")(x))
        for i, width in enumerate((8, 6)):
            x = nn.ConvTranspose(width, (2, 2), (2, 2), name=f"transposed_{i}")(x)
            x = jnp.concatenate([left.pop(), x], axis=-1)
            x = nn.relu(nn.Conv(width, (3, 3), name=f"up_{i}")(x))
        return nn.Conv(2, (1, 1), name="head")(x)


@network
def unet() -> Network:
    return of_linen(_UNet(), images(2, 8), others=(images(3, 12),))


class _Autoencoder(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side = x.shape[1] // 4
        x = nn.relu(nn.Conv(6, (3, 3), (2, 2), name="down_0")(x))
        x = nn.relu(nn.Conv(8, (3, 3), (2, 2), name="down_1")(x))
        code = nn.Dense(10, name="code")(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.Dense(side * side * 8, name="decode")(code)).reshape(-1, side, side, 8)
        x = nn.relu(nn.ConvTranspose(6, (3, 3), (2, 2), name="up_0")(x))
        return nn.ConvTranspose(3, (3, 3), (2, 2), transpose_kernel=False, name="up_1")(x)


@network
def conv_autoencoder() -> Network:
    return of_linen(_Autoencoder(), images(2, 8), others=(images(3, 8),))


class _DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.Conv(6, (3, 3), name="stem")(x)
        for i in range(3):
            y = nn.Conv(5, (3, 3), name=f"conv_{i}")(nn.relu(norm(name=f"norm_{i}")(x)))
            x = jnp.concatenate([x, y], axis=-1)
        x = nn.avg_pool(nn.Conv(9, (1, 1), name="transition")(nn.relu(norm(name="norm")(x))), (2, 2), (2, 2))
        return nn.Dense(5, name="head")(nn.relu(x).mean(axis=(1, 2)))


@network
def densenet() -> Network:
    return of_linen(_DenseNet(), images(2, 8), others=(images(3, 12),))


class _GroupNormNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.GroupNorm(4, name="norm")(nn.Conv(12, (3, 3), name="conv_0")(x)))
        x = nn.relu(nn.Conv(7, (3, 3), kernel_dilation=(2, 2), name="conv_1")(x))
        return nn.Dense(5, name="head")(x.mean(axis=(1, 2)))


@network
def groupnorm() -> Network:
    return of_linen(_GroupNormNet(), images(2, 8), others=(images(3, 12),))


class _Squeeze(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(nn.Conv(12, (3, 3), name="conv_0")(x))
        s = nn.relu(nn.Conv(4, (1, 1), name="squeeze")(x.mean(axis=(1, 2), keepdims=True)))
        x = x * nn.sigmoid(nn.Conv(12, (1, 1), name="excite")(s))
        x = nn.silu(nn.Conv(7, (3, 3), name="conv_1")(x))
        return nn.Dense(5, name="head")(x.mean(axis=(1, 2)))


@network
def squeeze_excite() -> Network:
    return of_linen(_Squeeze(), images(2, 8), others=(images(3, 12),))


# Recurrent networks ---------------------------------------------------------------------------------------------------


class _Recurrent(nn.Module):
    cell: Any
    reverse: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.RNN(self.cell(11, name="cell"), reverse=self.reverse, keep_order=True, name="rnn")(x)
        return nn.Dense(3, name="head")(x)


@network
def gru() -> Network:
    return of_linen(_Recurrent(nn.GRUCell), normal(2, 5, 4), others=(normal(3, 8, 4),))


@network
def lstm_reversed() -> Network:
    return of_linen(_Recurrent(nn.OptimizedLSTMCell, True), normal(2, 5, 4), others=(normal(3, 8, 4),))


# Equinox --------------------------------------------------------------------------------------------------------------


def of_equinox(make: Callable[[jax.Array], Any], *inputs: Any, others: tuple) -> Network:
    arrays, static = eqx.partition(eqx.filter_eval_shape(make, jax.random.key(0)), lambda leaf: hasattr(leaf, "dtype"))
    fn = lambda p, *x: jax.vmap(eqx.combine(p, static))(*x)  # noqa: E731
    return Network(fn, randomised(arrays), inputs, others)


@network
def equinox_mlp() -> Network:
    return of_equinox(lambda key: eqx.nn.MLP(4, 3, 10, 2, key=key), normal(2, 4), others=(normal(5, 4),))


@network
def equinox_cnn() -> Network:
    def make(key: jax.Array) -> eqx.Module:
        keys = jax.random.split(key, 3)
        return eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(3, 6, 3, key=keys[0]),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.MaxPool2d(2, 2),
                eqx.nn.Conv2d(6, 8, 3, groups=2, key=keys[1]),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Lambda(jnp.ravel),
                eqx.nn.Linear(8, 5, key=keys[2]),
            ]
        )

    return of_equinox(make, normal(2, 3, 8, 8), others=(normal(3, 3, 8, 8),))


class _EquinoxAttention(eqx.Module):
    first: eqx.nn.Linear
    attention: eqx.nn.MultiheadAttention
    last: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Linear(6, 12, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(3, 12, use_query_bias=True, use_value_bias=True, key=keys[1])
        self.last = eqx.nn.Linear(12, 2, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.vmap(self.first)(x)
        return jax.vmap(self.last)(x + self.attention(x, x, x))


@network
def equinox_attention() -> Network:
    return of_equinox(_EquinoxAttention, normal(2, 5, 6), others=(normal(3, 7, 6),))


# Plain functions ------------------------------------------------------------------------------------------------------


@network
def fused_qkv() -> Network:
    """One projection to queries, keys and values, the heads outermost in each."""
    params = drawn(inp=(6, 16), qkv=(16, 48), bias=(48,), out=(16, 16), head=(16, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["inp"]
        q, k, v = (part.reshape(*x.shape[:2], 4, 4) for part in jnp.split(x @ p["qkv"] + p["bias"], 3, axis=-1))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], 16)
        return (x + mixed @ p["out"]) @ p["head"]

    return Network(fn, params, (normal(2, 5, 6),), (normal(3, 7, 6),))


@network
def fused_qkv_inside() -> Network:
    """One projection whose queries, keys and values are inside each head, and one with an axis of 3."""
    params = drawn(inp=(6, 16), a=(16, 48), b=(16, 3, 4, 5), out_a=(16, 16), out_b=(4, 5, 16), head=(16, 3))

    def attended(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["inp"]
        inside = jnp.split((x @ p["a"]).reshape(*x.shape[:2], 4, 12), 3, axis=-1)
        x = x + attended(*inside).reshape(x.shape) @ p["out_a"]
        threes = jnp.einsum("btw,wchd->cbthd", x, p["b"])
        x = x + jnp.einsum("bqhd,hdw->bqw", attended(threes[0], threes[1], threes[2]), p["out_b"])
        return x @ p["head"]

    return Network(fn, params, (normal(2, 5, 6),), (normal(3, 7, 6),))


@network
def assorted() -> Network:
    """cumsum, where, pad, gather, a tensor with itself, tying, remat, a dict in and out, numbers closed over."""
    params = drawn(a=(6, 10), tied=(10, 12), b=(10, 7), c=(8, 10), last=(10, 3), table=(9, 10)) | {
        "count": jnp.int32(3),
        "factor": jnp.float32(0.7),
        "unused": jnp.ones((4, 4)),
    }
    closed = np.asarray(normal(10, seed=5))

    def fn(p: dict, batch: dict) -> dict:
        x = jnp.tanh(batch["x"] @ p["a"]) * p["factor"]
        x = jax.checkpoint(lambda x: jax.nn.relu(x @ p["tied"]) @ p["tied"].T)(x) + x
        x = x * closed + p["table"][batch["ids"]]
        gram = jnp.einsum("bi,ci->bc", x, x)
        x = jnp.where(x > 0, x, 0.1 * x) * (1 + jnp.sum(gram, -1, keepdims=True)) ** 0
        y = jnp.pad(x @ p["b"], ((0, 0), (0, 1)))
        x = x + jax.nn.silu(y) @ p["c"] * p["count"]
        return {"logits": x @ p["last"], "gram": gram}

    def batch(size: int) -> tuple:
        return ({"x": normal(size, 6), "ids": jnp.arange(size) % 9},)

    return Network(fn, params, batch(2), batch(5))


@network
def control() -> Network:
    """cond, while, nested scans, a reverse scan from zeros, and functions with derivatives of their own."""
    params = drawn(inp=(4, 9), a=(9, 8), b=(8, 9), loop=(9, 9), step=(9, 9), c=(9, 6), d=(6, 9), last=(9, 3))

    @jax.custom_vjp
    def through(x: jax.Array) -> jax.Array:
        return jnp.round(4 * x) / 4

    through.defvjp(lambda x: (through(x), None), lambda _, g: (g,))

    @jax.custom_vjp
    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda xw, g: (g @ xw[1].T, xw[0].T @ g))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = product(x, p["inp"])
        x = x + jax.lax.cond(x.sum() > 0, lambda x: jax.nn.relu(x @ p["a"]) @ p["b"], lambda x: -x, x)
        fixed = jax.lax.stop_gradient((x, p["loop"]))  # a while has no gradient
        more = lambda c: (c[0] + 1, c[1] + 0.1 * jnp.tanh(c[1] @ fixed[1]))  # noqa: E731
        x = x + jax.lax.while_loop(lambda c: c[0] < 3, more, (0, fixed[0]))[1]
        x = jax.lax.fori_loop(0, 2, lambda i, x: x + 0.1 * jnp.tanh(x @ p["loop"]), x)

        def outer(carry, _):
            inner = lambda c, z: (c + 0.1 * jnp.tanh((z + c) @ p["step"]), c)  # noqa: E731
            carry, seen = jax.lax.scan(inner, carry, jnp.stack([x, 2 * x]), reverse=True)
            return carry, seen.sum(0)

        carry, seen = jax.lax.scan(outer, jnp.zeros_like(x), None, length=2)
        x = x + carry + seen[1]
        return (x + product(through(jax.nn.relu(x @ p["c"])), p["d"])) @ p["last"]

    return Network(fn, params, (normal(2, 4),), (normal(5, 4),))


@network
def dropout() -> Network:
    """Dropout by a key of typed and of raw bits, along an axis that can be cut."""
    params = drawn(a=(4, 12), b=(12, 10), c=(10, 3))

    def fn(p: dict, x: jax.Array, key: jax.Array, raw: jax.Array) -> jax.Array:
        x = jax.nn.relu(x @ p["a"])
        x = jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)
        x = jax.nn.gelu(x @ p["b"])
        return jnp.where(jax.random.bernoulli(raw, 0.7, x.shape), x / 0.7, 0) @ p["c"]

    keys = (jax.random.key(3), jax.random.PRNGKey(4))
    return Network(fn, params, (normal(2, 4), *keys), (normal(5, 4), *keys))


@network
def mixture_of_experts() -> Network:
    """A dense mixture of 4 experts, the gate a softmax over them."""
    params = drawn(inp=(6, 8), gate=(8, 4), up=(4, 8, 10), down=(4, 10, 8), last=(8, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["inp"]
        weights = jax.nn.softmax(x @ p["gate"])
        hidden = jax.nn.gelu(jnp.einsum("bw,ewf->bef", x, p["up"]))
        return (x + jnp.einsum("bef,efw,be->bw", hidden, p["down"], weights)) @ p["last"]

    return Network(fn, params, (normal(2, 6),), (normal(5, 6),))


@network
def unknown_primitive() -> Network:
    """A Cholesky factor and a Fourier transform in the middle."""
    params = drawn(a=(6, 8), b=(8, 8), c=(8, 5), d=(5, 3))

    def fn(p: dict, x: jax.Array) -> jax.Array:
        x = x @ p["a"]
        x = x @ jnp.linalg.cholesky(p["b"] @ p["b"].T + jnp.eye(8))
        return jnp.tanh(jnp.abs(jnp.fft.fft(x)) @ p["c"]) @ p["d"]

    return Network(fn, params, (normal(2, 6),), (normal(5, 6),))
