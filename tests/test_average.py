"""The mean of networks, leaf by leaf, and what cannot be averaged."""

import jax
import numpy as np
import pytest
import tokenizers

from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.run import folder as runs
from prune_jax.tools import average

TOKENIZER = '{"any": "text"}'


def make_run(folder, seed=0, columns=4, closed=3):
    rng = np.random.default_rng(seed)
    kernel, bias = rng.normal(size=(3, columns)).astype(np.float32), rng.normal(size=columns).astype(np.float32)
    params = {"dense": {"kernel": kernel, "bias": bias}}
    gates = {"dense": {"kernel": (np.arange(3 * columns) >= closed).reshape(3, columns)}}
    config = config_lib.default()
    config.train.seed = seed
    (folder / "tokenizer").mkdir(parents=True)
    runs.write(folder, runs.Network(config, params, gates))
    (folder / "tokenizer" / "tokenizer.json").write_text(TOKENIZER)
    return params


def test_the_mean_of_three(tmp_path, capsys):
    params = [make_run(tmp_path / str(seed), seed) for seed in range(3)]
    average.main([*(str(tmp_path / str(seed)) for seed in range(3)), str(tmp_path / "mean")])
    assert "mean of 3 networks, their best checkpoints" in capsys.readouterr().out

    found, first = runs.load(tmp_path / "mean"), runs.load(tmp_path / "0")
    wanted = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), axis=0, dtype=np.float64), *params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found.params, wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype(np.float32)}
    assert found.config == first.config
    jax.tree.map(np.testing.assert_array_equal, found.gates, first.gates)
    assert (tmp_path / "mean" / "tokenizer" / "tokenizer.json").read_text() == TOKENIZER


def test_one_network_is_its_own_mean(tmp_path):
    params = make_run(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, average.networks([tmp_path / "run"]).params, params)


def test_mistakes(tmp_path):
    for name, changes in (("run", {}), ("wide", {"columns": 5}), ("sparse", {"closed": 4})):
        make_run(tmp_path / name, **changes)
    for arguments, message in (
        (("run", "gone", "mean"), "gone is not the folder of a run"),
        (("run", "wide", "mean"), r"dense/bias is \(5,\) in one and \(4,\) in the other"),
        (("run", "sparse", "mean"), "sparse has other gates of dense/kernel closed than"),
        (("run", "wide"), "wide exists already; choose the name of a new folder"),
        (("run", "mean", "--kind=last"), "there is no checkpoint in .*last"),
    ):
        with pytest.raises(UserError, match=message):
            average.main([a if a.startswith("-") else str(tmp_path / a) for a in arguments])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "sparse", "wide"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "data.label_names",
            ("yes", "no"),
            r"the outputs are yes, no in one and no, yes in the other \(config\.data\.",
        ),
        ("model.num_heads", 6, "config.model.num_heads is 6 in one and 12 in the other"),
        (None, {"a": 1, "b": 0}, "their tokenizers have other vocabularies"),
    ],
)
def test_other_networks_of_the_same_shapes_have_no_mean(key, value, says, tmp_path):
    """They were averaged without a word: one's yes with the other's no."""
    for name in ("run", "other"):
        make_run(tmp_path / name)
        config = config_lib.default()
        config.data.source, config.data.task = "csv", "classification"
        with config.unlocked(), config.data.ignore_type(), config.model.ignore_type():
            config.data.label_names, config.model.num_heads = ("no", "yes"), 12
            if name == "other" and key:
                room, leaf = key.split(".")
                config[room][leaf] = value
        files.write_json(tmp_path / name / "config.json", config_lib.to_json(config))
        words = value if name == "other" and not key else {"b": 1, "a": 0}
        model = tokenizers.models.WordLevel(words, unk_token="a")
        tokenizers.Tokenizer(model).save(str(tmp_path / name / "tokenizer" / "tokenizer.json"))
    with pytest.raises(UserError, match=f"other and .*run have different networks: {says}"):
        average.networks([tmp_path / "run", tmp_path / "other"])
