"""What a run keeps of its weights, and the pictures that are drawn from it."""

import numpy as np
import pytest
from PIL import Image
from test_report import SUMMARY, pixels, row, write
from test_sws import toy

import prune_jax as pj
from prune_jax import report

RUN = {**SUMMARY, "method": "sws", "model_size": "lenet_300_100", "task": "digits"}


def record(epoch, epochs, size=3000):
    rng = np.random.default_rng(0)
    start = 0.1 * rng.normal(size=size).astype(np.float32)
    end = np.where(np.abs(start) < 0.15, 0, np.sign(start) * 0.3) + 0.01 * rng.normal(size=size)
    share = epoch / epochs
    return {
        "weights": np.float32((1 - share) * start + share * end),
        "means": np.array([0, -0.3 - 0.1 * (1 - share), 0.3 + 0.1 * (1 - share)], np.float32),
        "deviations": np.full(3, 0.25 - 0.24 * share, np.float32),
        "proportions": np.array([0.9, 0.05, 0.05], np.float32),
    }


def keep(workdir, epochs):
    write(workdir, [row(epoch, sparsity=0.0, target_sparsity=0.0) for epoch in range(1, epochs + 1)])
    for epoch in range(epochs + 1):
        report.write_record(workdir, str(epoch), record(epoch, epochs))
    quantised = record(epochs, epochs)
    quantised["weights"] = np.float32(0.3 * np.round(quantised["weights"] / 0.3))
    report.write_record(workdir, "quantised", quantised)


def test_records_come_back_in_the_order_of_the_epochs(tmp_path):
    assert report.read_records(tmp_path) == ({}, None)
    for name in ("10", "0", "2", "2"):
        report.write_record(tmp_path, name, {"weights": np.array([int(name)])})
    epochs, quantised = report.read_records(tmp_path)
    assert [(n, int(found["weights"][0])) for n, found in epochs.items()] == [(0, 0), (2, 2), (10, 10)]
    assert quantised is None and len(list((tmp_path / "records").iterdir())) == 3
    assert [path.name for path in report.mixture.draw(tmp_path, RUN)] == []


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 6])
def test_pictures(tmp_path, epochs):
    keep(tmp_path, epochs)
    written = report.draw(tmp_path, RUN)
    names = ["loss.png", "metric.png", "weights.png", "start_end.png", "mixture.png", "retraining.gif"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(names)
    for path in written[2:5]:
        image = pixels(path)
        assert all(np.all(edge > 0.99) for edge in (image[0], image[-1], image[:, 0], image[:, -1]))
    with Image.open(written[-1]) as film:
        assert film.n_frames == epochs + 1 and film.info["loop"] == 0
        film.seek(film.n_frames - 1)
        assert film.info["duration"] == 2000
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in report.draw(tmp_path, RUN)] == before


def test_a_record_is_always_of_the_same_weights(monkeypatch):
    from prune_jax.methods import sws

    monkeypatch.setattr(sws, "RECORDED", 7)
    method = pj.soft_weight_sharing()
    params, gates = toy()
    trainable = method.init_trainable(params, gates, None)
    found = method.record(params, gates, trainable)
    assert found["weights"].shape == (7,) and found["weights"].dtype == np.float32
    masked = np.asarray(params["dense"]["kernel"] * gates["dense"]["kernel"])
    assert np.isin(found["weights"], masked).all()
    params["dense"]["kernel"] = 2 * params["dense"]["kernel"]
    np.testing.assert_allclose(method.record(params, gates, trainable)["weights"], 2 * found["weights"], rtol=1e-6)
    np.testing.assert_allclose(found["means"], [0, *np.linspace(-0.6, 0.6, 15)], atol=1e-6)
    np.testing.assert_allclose(found["deviations"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(found["proportions"], [0.99, *[0.01 / 15] * 15], rtol=1e-5)
