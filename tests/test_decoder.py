"""The decoder against transformers: logits of random checkpoints, in and out, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from prune_jax.data import tokenizer
from prune_jax.errors import UserError
from prune_jax.export import decoder as io
from prune_jax.export import shrunk_decoder
from prune_jax.models.decoder import Decoder, next_token_losses
from prune_jax.pruning import trees

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 61, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 500.0}
VARIANTS = {
    "llama": ("Llama", {}),
    "llama, tied, all heads, wide": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 10}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "mistral, a window": ("Mistral", {"sliding_window": 5, "rope_parameters": ROPE}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
}  # fmt: skip


def made(folder, variant="llama", dtype="float32", sizes=None, **options):
    """A random checkpoint of transformers: its model; biases and norms are random, too."""
    kind, words = VARIANTS[variant]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **words, **(sizes or {})})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                value.add_(0.3 * torch.randn_like(value))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, **options)
    return model


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


TOKENS = np.random.default_rng(0).integers(0, 61, (3, 17))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers_and_an_export_loads(variant, tmp_path):
    model = made(tmp_path / "in", variant)
    expected = logits_of(model, TOKENS)
    cfg, params, dtype = io.load(tmp_path / "in")
    logits = Decoder(cfg).apply({"params": params}, TOKENS)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    params["layer_0"]["query"]["kernel"][:] *= np.arange(params["layer_0"]["query"]["kernel"].shape[1]) % 2
    (tmp_path / "out").mkdir()
    io.write(tmp_path / "out", tmp_path / "in", params, dtype)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ours = np.asarray(Decoder(cfg).apply({"params": params}, TOKENS))
    theirs = logits_of(again, TOKENS)
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max() and np.abs(ours - expected).max() > 1e-2


TIED = "llama, tied, all heads, wide"


@pytest.mark.parametrize("variant", ["llama with biases", pytest.param(TIED, marks=pytest.mark.slow)])
def test_a_shrunk_decoder_is_the_gated_one(variant, tmp_path):
    """Heads, columns, residual channels and a whole layer go; what config.json cannot say stays, and is said."""
    made(tmp_path / "in", variant, sizes={"num_hidden_layers": 3})
    cfg, params, _ = io.load(tmp_path / "in")
    share = cfg.num_heads // cfg.num_kv_heads * cfg.head_dim
    for path, leaf in trees.by_name(params).items():
        if "_output/" in path or path == "token_embedding/embedding":
            leaf[..., [3, 5, 6, 20, 21]] = 0  # channels of the residual
            leaf *= not path.startswith("layer_1/")
    for layer, head, columns in ((0, 1, [0, 4, 9]), (2, 0, [1, 2, 3, 4, 5])):
        params[f"layer_{layer}"]["attention_output"]["kernel"][head * share : (head + 1) * share] = 0
        params[f"layer_{layer}"]["ffn_output"]["kernel"][columns] = 0
    small = shrunk_decoder.shrink(Decoder(cfg), params, "LlamaForCausalLM")
    left = small.cfg
    heads = (cfg.num_kv_heads - 1, cfg.num_heads - cfg.num_heads // cfg.num_kv_heads)
    assert (left.num_layers, left.num_kv_heads, left.num_heads, left.d_ff) == (2, *heads, 45)
    assert left.d_model == (27 if heads[1] == 3 else 28)  # the heads divide it
    assert small.notes[0] == "ffn: 2 closed units stay, as zeros: transformers has one size for all layers"
    (tmp_path / "out").mkdir()
    io.write(tmp_path / "out", tmp_path / "in", small.params, np.float32, left)
    assert io.load(tmp_path / "out")[0] == left
    theirs = logits_of(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), TOKENS)
    ours = np.asarray(jax.jit(Decoder(cfg).apply)({"params": params}, TOKENS))
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(ours).max() and np.abs(ours).max() > 0.1


def test_an_export_knows_where_a_text_ends(tmp_path):
    """The end's name was left behind, and transformers took the token 2 for it."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate("abcdef")}, []))
    backend.add_special_tokens(["<|end|>"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(tmp_path / "in")
    tokenizer.load(str(tmp_path / "in")).save(tmp_path / "run")
    assert io.special_ids(tmp_path / "run") == {"bos_token_id": None, "eos_token_id": 6, "pad_token_id": None}


@pytest.mark.parametrize("template", ["{{ messages }}", {"default": "{{ messages }}", "tools": "{{ tools }}"}])
@pytest.mark.parametrize("files", [True, False], ids=["files", "settings"])
def test_how_a_tokenizer_is_used_is_carried_over(template, files, tmp_path):
    """The chat template, the side of the padding and generation_config.json were left behind."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate("abcdef")}, []))
    backend.add_special_tokens(["<|end|>", "<|user|>"])
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", extra_special_tokens=["<|user|>"], padding_side="left"
    )
    theirs.chat_template = template
    theirs.save_pretrained(tmp_path / "in", save_jinja_files=files)
    (tmp_path / "in" / "generation_config.json").write_text('{"eos_token_id": [6, 3]}')
    (tmp_path / "in" / "config.json").write_text("{}")
    for name in ("run", "oneshot"):
        (tmp_path / name).mkdir()
    tokenizer.load(str(tmp_path / "in")).save(tmp_path / "run")
    io.write(tmp_path / "oneshot", tmp_path / "in", {}, np.float32)
    for name in ("run", "oneshot"):
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        assert (again.chat_template, again.padding_side) == (template, "left")
        assert again.all_special_tokens == ["<|end|>", "<|user|>"]
        assert json.loads((tmp_path / name / "generation_config.json").read_text()) == {"eos_token_id": [6, 3]}


def test_shards_and_bfloat16(tmp_path):
    made(tmp_path / "in", dtype="bfloat16", max_shard_size="10KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    cfg, params, dtype = io.load(tmp_path / "in")
    assert dtype.name == "bfloat16" and {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    (tmp_path / "out").mkdir()
    io.write(tmp_path / "out", tmp_path / "in", params, dtype)
    for name, value in io._tensors(tmp_path / "in").items():
        np.testing.assert_array_equal(value, io._tensors(tmp_path / "out")[name])
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert np.abs(Decoder(cfg).apply({"params": params}, TOKENS) - logits_of(again, TOKENS)).max() < 1e-3


def test_the_loss_is_that_of_transformers(tmp_path):
    model = made(tmp_path)
    cfg, params, _ = io.load(tmp_path)
    ours = next_token_losses(Decoder(cfg).apply({"params": params}, TOKENS), jnp.asarray(TOKENS)).mean()
    tokens = torch.tensor(TOKENS)
    np.testing.assert_allclose(ours, model(tokens, labels=tokens).loss.item(), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "its architecture is 'GPT2LMHeadModel'; allowed: LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "its rope_type is 'yarn'; allowed: 'default'"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'; allowed: a positive whole number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, no divisor of num_attention_heads 4"),
        ({"intermediate_size": 40}, r"mlp.gate_proj.weight is \(48, 32\), and config.json makes it another"),
        ({"num_hidden_layers": 3}, "model.layers.2.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight has no place"),
    ],
)
def test_what_differs_is_told(change, message, tmp_path):
    made(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        io.load(tmp_path)


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"is no checkpoint: it has no config.json"):
        io.load(tmp_path)
    made(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model.safetensors"):
        io.load(tmp_path)
