"""IDX files and the digits: what is read, and one message for each way a file can be broken."""

import gzip
import struct

import numpy as np
import pytest

from configs import common
from prune_jax.data import batching, images
from prune_jax.errors import UserError
from prune_jax.run import inputs

NAMES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A folder of 40 training and 12 test images, the pixels of image i all i."""
    for (pixels_name, labels_name), count in zip(NAMES.values(), (40, 12), strict=True):
        pixels = np.broadcast_to(np.arange(count)[:, None, None], (count, 28, 28))
        (tmp_path / f"{pixels_name}.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / labels_name).write_bytes(idx(np.arange(count) % 10))
    return tmp_path


def load(folder="", **changes):
    config = common.get_config()
    config.model.name = "lenet_300_100"
    config.data.task, config.data.source, config.data.dir = "mnist", "auto", str(folder)
    config.data.update(changes)
    config.train.batch_size = 8
    return inputs.load_data(inputs.resolve(config, {})[0])


def test_idx_files_plain_and_gzipped(mnist):
    found = load(mnist)
    assert len(found.train) == 40 and list(found.evals) == ["test"] and len(found.evals["test"]) == 12
    assert found.tokenizer is None and found.vocab_size is None and found.task.shape == (28, 28, 1)
    batch = found.train.batch(np.array([3, 39]), 1, 4)
    assert batch["image"].shape == (4, 28, 28, 1) and batch["image"].dtype == np.float32
    np.testing.assert_allclose(batch["image"][:, 5, 7, 0], [3 / 255, 39 / 255, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(batch["labels"], [3, 9, 0, 0])
    np.testing.assert_array_equal(batch["weights"], [1, 1, 0, 0])


def test_the_other_spelling_of_the_names(mnist):
    for names in NAMES.values():
        for path in (path for name in names for path in mnist.glob(f"{name}*")):
            path.rename(mnist / path.name.replace("-idx", ".idx"))
    assert len(load(mnist).train) == 40


def test_every_example_once_an_epoch(mnist):
    train = load(mnist).train
    batches = list(batching.train_batches(train, 16, images.BUCKETS, 0, 0))
    assert [int(batch["weights"].sum()) for batch in batches].count(16) == 2 and len(batches) == 3
    seen = [round(float(image[0, 0, 0]) * 255) for b in batches for image in b["image"][b["weights"] > 0]]
    assert sorted(seen) == list(range(40)) and seen != sorted(seen)


def test_a_holdout_takes_the_place_of_the_test_images(mnist):
    found = load(mnist, holdout=10)
    assert list(found.evals) == ["holdout"]
    kept, held = (set(split.pixels[:, 0, 0, 0].tolist()) for split in (found.train, found.evals["holdout"]))
    assert len(held) == 10 and kept | held == set(range(40)) and not kept & held
    assert load(mnist, holdout=10).evals["holdout"].pixels[0, 0, 0, 0] in held
    with pytest.raises(UserError, match=r"config\.data\.holdout is 40; allowed: fewer than 40"):
        load(mnist, holdout=40)


def test_a_holdout_of_text():
    config = common.get_config()
    config.data.update(source="builtin", task="single", max_len=32, builtin_train_size=60, builtin_eval_size=5)
    config.train.batch_size = 8
    whole = inputs.load_data(inputs.resolve(config, {})[0]).train
    config.data.holdout = 20
    found = inputs.load_data(inputs.resolve(config, {})[0])

    def sentences(split):
        return sorted(split.ids[a:b].tobytes() for a, b in zip(split.offsets, split.offsets[1:], strict=False))

    assert (len(found.train), len(found.evals["holdout"])) == (40, 20)
    assert sorted(sentences(found.train) + sentences(found.evals["holdout"])) == sentences(whole)


def broken(name, change):
    def apply(folder):
        (path,) = folder.glob(f"{name}*")
        change(path)

    return apply


PIXELS, LABELS = NAMES["train"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (broken(LABELS, lambda p: p.unlink()), "train-labels-idx1-ubyte is missing"),
        (broken(PIXELS, lambda p: p.write_bytes(p.read_bytes()[:-20])), "cannot be read"),  # gzip cut off
        (broken(PIXELS, lambda p: p.write_bytes(b"\x1f\x8bnonsense")), "cannot be read"),
        (broken(PIXELS, lambda p: p.write_bytes(b"")), "not an IDX file .* starts with nothing"),
        (broken(LABELS, lambda p: p.write_bytes(p.read_bytes()[:-1])), "holds 39 bytes; its header says 40"),
        (broken(LABELS, lambda p: p.write_bytes(p.read_bytes() + b"!")), "holds 41 bytes; its header says 40"),
        (broken(LABELS, lambda p: p.write_bytes(b"\0\0\x0d\1" + p.read_bytes()[4:])), "starts with 00000d01, expected"),
        (broken(LABELS, lambda p: p.write_bytes(p.read_bytes()[:5])), "not an IDX file"),
        (broken(LABELS, lambda p: p.write_bytes(idx(np.zeros(39)))), "has 40 images, and .* 39 labels"),
        (broken(LABELS, lambda p: p.write_bytes(idx(np.full(40, 10)))), "has a label 10; allowed: 0 to 9"),
        (broken(PIXELS, lambda p: p.write_bytes(gzip.compress(idx(np.zeros((40, 27, 28)))))), "27x28; expected 28x28"),
        (
            broken(PIXELS, lambda p: p.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3)))),
            "holds 0 bytes; its header says 4294967295x4294967295x4294967295",
        ),
    ],
)
def test_a_broken_file_is_named(damage, says, mnist):
    damage(mnist)
    with pytest.raises(UserError, match=says) as caught:
        load(mnist)
    assert "\n" not in str(caught.value) and str(mnist) in str(caught.value)


def test_digits_are_split_the_same_way_every_time():
    found = load()
    assert found.task.name == "digits" and (len(found.train), len(found.evals["test"])) == (1437, 360)
    image = found.train.batch(np.arange(1437), 1, 1437)["image"]
    assert image.shape[1:] == (8, 8, 1) and image.min() == 0 and image.max() == 1
    again = load()
    np.testing.assert_array_equal(found.evals["test"].pixels, again.evals["test"].pixels)
    counts = np.bincount(found.evals["test"].labels, minlength=10)
    assert counts.min() >= 20  # every class is there


def test_the_real_files(real_data):
    found = load(real_data / "mnist")
    assert (len(found.train), len(found.evals["test"])) == (60_000, 10_000)
    assert found.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert found.train.batch(np.arange(1000), 1, 1000)["image"].mean() == pytest.approx(0.1307, abs=5e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"data.task": "sst2", "data.source": "idx", "data.dir": "."},
            r"config\.data\.task is 'sst2'; allowed .*idx: mnist",
        ),
        (
            {"data.task": "mnist", "data.source": "tsv", "data.dir": "."},
            r"config\.data\.source is 'tsv'; allowed .*mnist: idx",
        ),
        (
            {"data.task": "digits", "data.source": "idx", "data.dir": "."},
            r"config\.data\.source is 'idx'; allowed .*digits: builtin",
        ),
        (
            {"data.task": "mnist", "data.source": "idx", "model.name": "tutorial"},
            r"config\.data\.dir is empty; .*IDX files",
        ),
        ({"data.task": "digits"}, r"config\.model\.name is 'bert'; allowed: lenet_300_100, lenet5_caffe, tutorial"),
        ({"data.task": "single", "model.name": "tutorial"}, r"config\.model\.name is 'tutorial'; allowed: bert with"),
    ],
)
def test_mistakes_in_the_config(changes, says):
    config = common.get_config()
    config.data.source = "builtin"
    for key, value in changes.items():
        room, name = key.split(".")
        config[room][name] = value
    with pytest.raises(UserError, match=says):
        inputs.resolve(config, {})
