"""What a config resolves to, and one message, with key, value and what is allowed, for each mistake."""

import importlib
import json
import math
import re
from pathlib import Path

import pytest

from configs import common
from prune_jax import config as config_lib
from prune_jax import methods
from prune_jax.config import following, from_json, keys, reference, resolve, rooms, to_json, unknown_key_message
from prune_jax.config.sizes import FOLLOWS_SIZE, SIZES
from prune_jax.config.values import typed
from prune_jax.data import DataOptions
from prune_jax.data.glue import BUILTIN_TASKS, IMAGE_TASKS, KINDS, TASKS
from prune_jax.errors import UserError
from prune_jax.report import sinks

FILES = sorted(p.stem for p in (Path(__file__).resolve().parents[1] / "configs").glob("[a-z]*.py"))


def make(changes=None):
    config = common.get_config()
    config.data.source = "builtin"
    for key, value in (changes or {}).items():
        room, name = key.split(".")
        with config.ignore_type():
            config[room][name] = value
    return config


def resolved(changes=None, environ=None):
    return resolve(make(changes), environ or {})


@pytest.mark.parametrize("name", FILES)
def test_every_file_resolves(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.source = "text" if config.data.task == "lm" else "builtin"
    found, notes = resolve(config, {})
    assert all(note.startswith("config.pruning.structure=encoder covers") for note in notes)
    if name.endswith("_base"):
        assert found.pruning.method == name.removesuffix("_base") and found.model.size == "base"


def test_quickstart_needs_no_network_and_reaches_its_last_step():
    found, notes = resolve(importlib.import_module("configs.quickstart").get_config(), {})
    assert found.data.source == "builtin" and notes == []


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_a_network_goes_by_its_size_unless_its_geometry_is_another(size):
    found, _ = resolved({"model.size": size})
    assert config_lib.model_label(found) == size
    other, _ = resolved({"model.size": size, "model.num_layers": 3})
    assert config_lib.model_label(other) == f"3x{found.model.d_model}"


def test_a_flow_of_ones_needs_a_network_of_images():
    with pytest.raises(UserError, match=r"config\.model\.name is 'bert'; allowed: .*lenet_300_100.*method=synflow"):
        resolved({"pruning.method": "synflow"})


def test_an_image_network_goes_by_its_name():
    image, _ = resolved({"model.name": "tutorial", "data.task": "mnist", "data.source": "builtin"})
    assert config_lib.model_label(image) == "tutorial"


def test_defaults_of_the_design():
    found, _ = resolved()
    train, pruning = found.train, found.pruning
    assert (train.epochs, train.batch_size, train.learning_rate, found.data.max_len) == (25, 96, 2e-5, 128)
    assert (pruning.start_sparsity, pruning.end_sparsity, pruning.start_epoch, pruning.end_epoch) == (0, 1, 4, 23)
    assert (found.data.task, found.spt.reward_alpha, found.spt.explorations, found.spt.center) == (
        "sst2",
        1 / 8,
        1,
        True,
    )


def test_epsilon_of_whole_layers_does_not_follow_the_size():
    config = common.get_config()
    config.spt.credit = "layer"
    assert config_lib.resolve(config, {})[0].spt.epsilon == 0.3
    config.spt.epsilon = 0.1
    assert config_lib.resolve(config, {})[0].spt.epsilon == 0.1


@pytest.mark.parametrize(
    ("size", "geometry", "epsilon", "frequency"),
    [
        ("tiny", (2, 256, 4, 512), 0.01, 100),
        ("small", (6, 512, 8, 1024), 0.005, 200),
        ("base", (12, 768, 12, 3072), 0.0025, 400),
        ("large", (24, 1024, 16, 4096), 0.001, 800),
    ],
)
def test_values_that_follow_the_size(size, geometry, epsilon, frequency):
    found, _ = resolved({"model.size": size})
    model = found.model
    assert (model.num_layers, model.d_model, model.num_heads, model.d_ff) == geometry
    assert (found.spt.epsilon, found.movement.frequency) == (epsilon, frequency)
    assert found.pruning.sparsity_steps == pytest.approx([step / 100 for step in SIZES[size].steps])


def test_set_values_stay_on_a_change_of_size():
    mine = {
        "model.d_model": 384, "model.num_layers": 6, "model.num_heads": 12, "model.d_ff": 1536,
        "spt.epsilon": 0.03, "movement.frequency": 7, "pruning.sparsity_steps": (0.2, 0.4),
    }  # fmt: skip
    for size in SIZES:
        found, _ = resolved({"model.size": size} | mine)
        assert {key: found[key.split(".")[0]][key.split(".")[1]] for key in mine} == mine


def test_resolve_leaves_its_argument_alone_and_locks_its_result():
    config = make()
    before = config.to_dict()
    found, _ = resolve(config, {"BENCHMARK_EPOCHS": "3"})
    assert config.to_dict() == before
    with pytest.raises(AttributeError):
        found.train.epoch = 3


@pytest.mark.parametrize("schedule", ["step", "linear"])
def test_resolving_twice_changes_nothing(schedule):
    once, _ = resolved({"pruning.schedule": schedule, "train.epochs": 10, "pruning.sparsity_steps": (1.5, 2, 60)})
    assert resolve(once, {})[0].to_dict() == once.to_dict()


@pytest.mark.parametrize(
    ("steps", "fractions"),
    [
        ((25, 50, 100), (0.25, 0.5, 1.0)),
        ((0.25, 0.5, 1), (0.25, 0.5, 1.0)),
        ((0.25, 0.5, 1.0), (0.25, 0.5, 1.0)),
        ((0.005, 0.5), (0.005, 0.5)),
        ((1, 2, 5), (0.01, 0.02, 0.05)),  # a 1 among percentages is one
        ((0, 97.5), (0.0, 0.975)),
        ((0, 0.5), (0.0, 0.5)),
        ((0, 0), (0.0, 0.0)),
        ((100,), (1.0,)),
        ((1.0,), (1.0,)),  # as a resolved config has it
        ((0.0, 1.0), (0.0, 1.0)),
    ],
)
def test_sparsity_steps_are_percentages_or_fractions_and_resolve_to_themselves(steps, fractions):
    found, _ = resolved({"pruning.sparsity_steps": steps})
    assert found.pruning.sparsity_steps == pytest.approx(fractions)
    saved = config_lib.from_json(json.loads(json.dumps(to_json(found))))
    assert resolve(saved, {})[0].to_dict() == found.to_dict()


@pytest.mark.parametrize("steps", [(0.25, 0.5, 1, 2), (0.5, 1.5, 60), (0.5, 50), (1,), (0, 1), (1, 1)])
def test_sparsity_steps_that_may_be_either_are_refused(steps):
    with pytest.raises(UserError) as caught:
        resolved({"pruning.sparsity_steps": steps})
    message = str(caught.value)
    assert message.startswith(f"config.pruning.sparsity_steps is {steps}; allowed: ")
    says = "not both" if any(0 < step < 1 for step in steps) else "0.01 for one percent, 1.0 or 100 for all"
    assert says in message


def test_whole_numbers_and_lists_are_taken_where_floats_and_tuples_are_meant():
    found, _ = resolved({"pruning.end_sparsity": 1, "pruning.sparsity_steps": [50, 70.5], "data.buckets": [32, 128]})
    assert type(found.pruning.end_sparsity) is float
    assert found.pruning.sparsity_steps == (0.5, 0.705) and found.data.buckets == (32, 128)
    assert resolved({"pruning.sparsity_steps": 50})[0].pruning.sparsity_steps == (0.5,)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.size": "huge"}, ("tiny, small, base, large",)),
        ({"model.dtype": "float16"}, ("float32, bfloat16",)),
        ({"model.dropout": 1.0}, ("0 to 0.99",)),
        ({"model.dropout": -0.1}, ("0 to 0.99",)),
        ({"model.num_layers": 0}, ("1 to",)),
        ({"model.num_heads": 7}, ("a divisor of config.model.d_model (768)",)),
        ({"model.pooler_width": 769}, ("at most config.model.d_model (768)",)),
        ({"model.vocab_size": 0}, ("1 to",)),
        ({"model.max_positions": 64}, ("config.data.max_len is 128", "at most config.model.max_positions (64)")),
        ({"data.task": "sst3"}, ("sst2", "single, pair, regression")),
        ({"data.source": "web"}, ("hub, tsv, idx, builtin, auto",)),
        ({"data.bad_rows": "drop"}, ("error, skip",)),
        ({"data.max_len": 7}, ("8 to",)),
        ({"data.buckets": ()}, ("increasing lengths", "at least config.data.max_len (128)")),
        ({"data.buckets": (64, 32, 128)}, ("increasing lengths",)),
        ({"data.buckets": (32, 32, 128)}, ("increasing lengths",)),
        ({"data.buckets": (0, 128)}, ("increasing lengths",)),
        ({"data.buckets": (32.0, 128)}, ("increasing lengths",)),
        ({"data.buckets": (32, 64)}, ("at least config.data.max_len (128)",)),
        ({"data.buckets": (32, 1024)}, ("at most config.model.max_positions (512)",)),
        ({"data.builtin_train_size": 0}, ("1 to",)),
        ({"data.max_train_examples": -1}, ("at least 0",)),
        ({"train.epochs": 0}, ("1 to",)),
        ({"train.epochs": True}, ("int, not bool",)),
        ({"train.epochs": 2.0}, ("int, not float",)),
        ({"train.epochs": "3"}, ("int, not str",)),
        ({"train.epochs": None}, ("int, not NoneType",)),
        ({"train.batch_size": 0}, ("1 to",)),
        ({"train.eval_batch_size": -8}, ("1 to",)),
        ({"train.learning_rate": 0.0}, ("above 0",)),
        ({"train.learning_rate": math.nan}, ("finite",)),
        ({"train.learning_rate": math.inf}, ("finite",)),
        ({"train.lr_schedule": "step"}, ("constant, linear, cosine",)),
        ({"train.warmup_fraction": 1.5}, ("0 to 1",)),
        ({"train.weight_decay": -0.01}, ("0 to",)),
        ({"train.clip_norm": -1.0}, ("at least 0",)),
        ({"train.seed": -1}, ("0 to",)),
        ({"train.checkpoint_every": -1}, ("at least 0",)),
        ({"pruning.method": "chance"}, ("baseline, magnitude, movement, sensitivity, platon, spt, sws",)),
        ({"pruning.schedule": "exponential"}, ("step, linear",)),
        ({"pruning.scope": "layer"}, ("local, erk, global",)),
        ({"pruning.end_sparsity": 1.5}, ("0 to 1",)),
        ({"pruning.end_sparsity": 150.0}, ("0 to 1",)),
        ({"pruning.start_sparsity": -0.1}, ("0 to 1",)),
        ({"pruning.start_sparsity": 0.9, "pruning.end_sparsity": 0.5}, ("at most config.pruning.end_sparsity (0.5)",)),
        ({"pruning.start_epoch": -1}, ("at least 0",)),
        ({"pruning.start_epoch": 24}, ("at most config.pruning.end_epoch (23)",)),
        ({"pruning.sparsity_steps": ()}, ("at least one percentage",)),
        ({"pruning.sparsity_steps": (50, 101)}, ("percentages from 0 to 100",)),
        ({"pruning.sparsity_steps": (-1, 50)}, ("percentages from 0 to 100",)),
        ({"pruning.sparsity_steps": (50, 40)}, ("do not fall",)),
        ({"pruning.sparsity_steps": ("50",)}, ("numbers",)),
        ({"pruning.sparsity_steps": (True, 50)}, ("numbers",)),
        ({"pruning.sparsity_steps": (math.nan,)}, ("finite",)),
        ({"pruning.sparsity_steps": "50"}, ("tuple, not str",)),
        ({"spt.epsilon": 0.0}, ("above 0 and below 1",)),
        ({"spt.epsilon": 1.0}, ("above 0 and below 1",)),
        ({"spt.reward_alpha": 1.1}, ("0 to 1",)),
        ({"spt.explorations": 0}, ("1 to",)),
        ({"spt.explore_per_layer": 1}, ("bool, not int",)),
        ({"spt.center": "yes"}, ("bool, not str",)),
        ({"spt.credit": "neuron"}, ("weight",)),
        ({"pruning.structure": "unstructured", "spt.credit": "group"}, ("block:RxC with config.spt.credit=group",)),
        (
            {"pruning.structure": "block:0x4"},
            ("unstructured, encoder, auto, kinds or names of groups",),
        ),
        ({"spt.absolute": True, "spt.credit": "layer"}, ("False with config.spt.credit=layer",)),
        ({"spt.candidates": "threshold", "spt.credit": "layer"}, ("uniform with",)),
        ({"spt.inside": "movement"}, ("magnitude with config.spt.credit=weight",)),
        (
            {"pruning.structure": "head", "spt.credit": "layer", "spt.inside": "movement"},
            ("unstructured, encoder with config.spt.inside=movement",),
        ),
        ({"spt.explorations": 3, "spt.antithetic": True}, ("an even number",)),
        ({"spt.chunk": 0}, ("1 to",)),
        ({"movement.frequency": 0}, ("at least 1",)),
        ({"movement.threshold": "fuzzy"}, ("hard, soft",)),
        ({"movement.scores": "mean"}, ("sum, adam",)),
        ({"movement.tau": 0.0}, ("above 0 and below 1",)),
        ({"movement.score_learning_rate": -1e-2}, ("0 to",)),
        ({"movement.penalty": -1.0}, ("at least 0",)),
        ({"rigl.fraction": 1.5}, ("0 to 1",)),
        ({"set.frequency": 0}, ("at least 1",)),
        ({"report.sinks": ("tensorboard", "email")}, ("any of tensorboard, wandb, mlflow",)),
        ({"report.sinks": (1,)}, ("text only",)),
        ({"report.sinks": None}, ("tuple, not NoneType",)),
        ({"data.task": None}, ("str, not NoneType",)),
        ({"train.batch_size": "None"}, ("int, not str",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_named(changes, says):
    with pytest.raises(UserError) as caught:
        resolved(changes)
    message = str(caught.value)
    assert "\n" not in message and "config." in message
    for text in says:
        assert text in message, message
    if "max_positions" not in next(iter(changes)):  # told of the key that has to fit in it
        key, value = next(iter(changes.items()))
        assert f"config.{key} is " in message and str(value) in message, message


def test_the_defaults_are_those_of_the_declarations():
    config = common.get_config()
    assert config_lib.leaves(config).keys() == keys.KEYS.keys()
    for key, one in keys.KEYS.items():
        room, name = key.split(".")
        assert config[room].get_type(name) is one.kind and config[room][name] == one.default, key


def test_every_number_has_a_range_and_every_key_a_sentence():
    """A number without a range would let any value through."""
    numbers = [key for key, one in keys.KEYS.items() if one.kind in (int, float)]
    assert [key for key in numbers if not keys.bounds(keys.KEYS[key])] == []
    for key, one in keys.KEYS.items():
        assert re.fullmatch(r"[A-Z0-9].*\.", one.text) and "\n" not in one.text, key
        assert one.optional or keys.within(one, one.default), key


def test_the_reference_page_is_up_to_date():
    """`python -m prune_jax.config.reference > docs/reference_config.md` makes it anew."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "reference_config.md").read_text()
    assert reference.page() == text
    assert all(f"| `{key}` |" in text for key in keys.KEYS)


def test_the_lists_of_keys_name_keys():
    for listed in (
        FOLLOWS_SIZE,
        following.OTHERWISE,
        keys.PATHS,
        keys.INPUTS,
        keys.WITHOUT_RESULT,
        keys._IN_WORDS,
        keys.FOUND,
    ):
        assert set(listed) <= keys.KEYS.keys()
    assert {f"model.{name}" for name in following.FOLLOWS_CHECKPOINT} <= keys.KEYS.keys()


def test_what_is_declared_beside_the_code_agrees_with_it():
    assert tuple(sinks.SINKS) == rooms.SINKS
    assert keys.allowed("data.task").replace(";", ",").split(", ") == [
        *TASKS,
        *BUILTIN_TASKS,
        *IMAGE_TASKS,
        *KINDS,
        "lm",
    ]
    options, room = DataOptions._field_defaults, common.get_config().data
    assert set(DataOptions._fields) == set(room)
    assert {name: options[name] for name in options} == {name: room[name] for name in options}


def test_a_methods_room_is_what_the_method_declares():
    for name in methods.REGISTRY:
        declared = {f"{name}.{key}": one for key, one in methods.options(name).items() if one.in_config}
        assert {key for key in keys.KEYS if key.startswith(f"{name}.")} == declared.keys()
        for key, one in declared.items():
            if key not in FOLLOWS_SIZE:
                assert keys.KEYS[key] == one


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("model.vocab_size", "None", None),
        ("model.layer_norm_eps", "None", None),
        ("model.activation", "None", None),
        ("data.buckets", (None,), None),
        ("data.buckets", "None", None),
        ("spt.chunk", None, None),
        ("report.sinks", (), ()),
        ("report.sinks", ("",), ()),
        ("report.sinks", "", ()),
        ("report.sinks", ("tensorboard,mlflow",), ("tensorboard", "mlflow")),
        ("report.sinks", "tensorboard, wandb", ("tensorboard", "wandb")),
        ("report.sinks", ["mlflow"], ("mlflow",)),
    ],
)
def test_a_key_may_be_unset_and_a_tuple_emptied(key, value, wanted):
    assert typed(key, value) == wanted


@pytest.mark.parametrize("key", keys.PATHS)
def test_paths_are_what_a_shell_makes_of_them(key, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path / "there"))
    (tmp_path / "there").mkdir()
    room, name = key.split(".")

    def found(value):
        read = []
        of_files = {"data.source": "hub", "data.task": "classification"} if key in ("data.train", "data.eval") else {}
        config = make({key: value} | of_files)  # a source that reads them
        resolved, _ = resolve(config, {}, describe=lambda source: (read.append(source) or {}, ""))
        assert read == ([resolved.model.init_from] if resolved.model.init_from else [])
        return resolved[room][name]

    assert found("~/there") == found("$HERE") == found("${HERE}") == str(tmp_path / "there")
    assert found("plain/name") == "plain/name"
    with pytest.raises(UserError) as caught:
        found("$NOWHERE_AT_ALL/x")
    says = f"config.{key} is '$NOWHERE_AT_ALL/x'; the environment variable NOWHERE_AT_ALL is not set"
    assert str(caught.value) == says


def test_a_key_matters_unless_it_cannot_change_the_result():
    assert config_lib.matters("train.epochs", "spt") and config_lib.matters("spt.epsilon", "spt")
    assert not config_lib.matters("spt.epsilon", "magnitude") and not config_lib.matters("report.sinks", "spt")
    assert not config_lib.matters("train.eval_batch_size", "spt") and not config_lib.matters("data.cache_dir", "spt")
    assert config_lib.matters("data.dir", "spt") and not config_lib.matters("pruning.scope", "baseline")


def test_tsv_needs_an_existing_folder(tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.dir is empty.*GLUE folder"):
        resolved({"data.source": "tsv"})
    missing = tmp_path / "nothing"
    with pytest.raises(UserError, match=rf"config\.data\.dir is .*{re.escape(str(missing))}.*no such folder"):
        resolved({"data.source": "tsv", "data.dir": str(missing)})
    assert resolved({"data.source": "tsv", "data.dir": str(tmp_path)})[0].data.dir == str(tmp_path)


def test_builtin_tasks_need_the_builtin_source():
    with pytest.raises(UserError, match=r"config\.data\.task is 'single'.*cola.*config\.data\.source=builtin"):
        resolved({"data.source": "hub", "data.task": "single"})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("prunning.method", "pruning.method"),
        ("train.epoch", "train.epochs"),
        ("model.frequency", "movement.frequency"),
        ("spt.eps", "spt.epsilon"),
        ("prunning", "pruning"),
    ],
)
def test_unknown_keys_name_the_nearest(key, nearest):
    assert unknown_key_message(key, common.get_config()) == f"unknown key config.{key}; did you mean config.{nearest}?"


def test_keys_of_a_hand_made_config():
    config = make()
    config.train.epoch = 3
    with pytest.raises(UserError, match=r"unknown key config\.train\.epoch; did you mean config\.train\.epochs\?"):
        resolve(config, {})
    config = make()
    del config["train"]
    with pytest.raises(UserError, match=r"config\.train\.\w+ is missing"):
        resolve(config, {"BENCHMARK_EPOCHS": "2"})
    with pytest.raises(UserError, match=r"config\.model is 3; allowed: its keys"):
        resolve(common.get_config().to_dict() | {"model": 3}, {})
    plain = make().to_dict()
    plain["train"]["learning_rate"] = True
    with pytest.raises(
        UserError, match=r"config\.train\.learning_rate is True; allowed: a value of type float, not bool"
    ):
        resolve(plain, {})


def test_benchmark_epochs():
    found, notes = resolved(environ={"BENCHMARK_EPOCHS": "30"})
    assert found.train.epochs == 30
    assert notes == ["BENCHMARK_EPOCHS=30 overrides config.train.epochs=25"]
    assert resolved(environ={"BENCHMARK_EPOCHS": "25"})[1] == []
    assert resolved(environ={"BENCHMARK_EPOCHS": ""})[0].train.epochs == 25


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_benchmark_epochs_mistakes(text):
    with pytest.raises(UserError, match=rf"BENCHMARK_EPOCHS is '{re.escape(text)}'; allowed: a whole number"):
        resolved(environ={"BENCHMARK_EPOCHS": text})


def test_a_linear_window_is_cut_to_the_run():
    found, (note,) = resolved({"pruning.schedule": "linear", "train.epochs": 10, "pruning.end_sparsity": 0.9})
    assert found.pruning.end_epoch == 10
    assert "config.pruning.end_epoch is 23" in note and "10 epochs" in note and "90% closed" in note


def test_a_step_schedule_longer_than_the_run_tells_where_it_ends():
    found, (note,) = resolved({"model.size": "tiny", "train.epochs": 6})
    assert found.pruning.end_epoch == 23
    assert "2 of the 20 sparsity steps" in note and "25% closed" in note


def test_a_last_cut_that_no_epoch_follows_is_told():
    short = {"pruning.sparsity_steps": (50, 90), "pruning.start_epoch": 4}
    _, (note,) = resolved(short | {"train.epochs": 6})
    assert "the last cut, to 90% closed, comes after the last of 6 epochs" in note
    assert resolved(short | {"train.epochs": 7})[1] == resolved({"pruning.end_epoch": 24})[1] == []


def test_a_run_that_ends_before_pruning_starts():
    for schedule in ("step", "linear"):
        for epochs in (3, 4):
            _, (note,) = resolved({"train.epochs": epochs, "pruning.schedule": schedule})
            assert "nothing will be pruned" in note and f"the run has {epochs}" in note
    _, (note,) = resolved({"train.epochs": 4, "pruning.start_sparsity": 0.3})
    assert "ends at 30% closed" in note and "nothing" not in note
    assert resolved({"train.epochs": 3, "pruning.method": "baseline"})[1] == []


def test_json_round_trip():
    found, _ = resolved({"data.buckets": (32, 128), "model.size": "tiny"})
    text = json.dumps(to_json(found))
    assert from_json(json.loads(text)).to_dict() == found.to_dict()
    assert to_json(from_json(json.loads(text))) == json.loads(text)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (100, "2:4 closes 50%, and the last target is 100%: it stays there"),
        (25, "the last target, 25% closed, is short"),
    ],
)
def test_a_target_that_a_structure_cannot_reach_is_told(target, says):
    steps = {"pruning.structure": "2:4", "pruning.schedule": "step", "pruning.sparsity_steps": (target,)}
    _, notes = resolved(steps)
    assert any(says in note for note in notes)
    _, notes = resolved(steps | {"pruning.sparsity_steps": (50,)})
    assert not any("2:4" in note for note in notes)
