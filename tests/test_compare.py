"""Several runs as one result: hand-computed numbers, what is left out, and the page in a real browser."""

import csv
import html
import html.parser
import json
import math
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from prune_jax import config as config_lib
from prune_jax import files, report
from prune_jax.__main__ import main
from prune_jax.errors import UserError
from prune_jax.report import compare, page, plots, study

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def row(epoch, sparsity, metric, before=None, target=None, sparsity_before=None):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "train_loss": 0.6,
        "eval_loss": 0.7 - 0.01 * epoch,
        "eval_metric": metric,
        "sparsity": sparsity,
        "target_sparsity": sparsity if target is None else target,
        "seconds": 2.0 if epoch == 1 else 0.5,
        "metric_before_pruning": metric if before is None else before,
        "sparsity_before_pruning": sparsity_before,
    }


DENSE = [row(1, 0, 0.70, sparsity_before=0.0)]
PRUNED = [  # one dense epoch, pruned to 50 and to 75 percent, one epoch of retraining at 75
    row(1, 0.0, 0.70, sparsity_before=0.0),
    row(2, 0.5, 0.60, before=0.72, sparsity_before=0.0),
    row(3, 0.7501, 0.50, before=0.68, target=0.75, sparsity_before=0.5),
    row(4, 0.7501, 0.64, target=0.75, sparsity_before=0.7501),
]


def make_run(folder, config, rows, method="spt", seed=0, task="single", **changes):
    """A run's folder with everything that a comparison reads."""
    config = config.copy_and_resolve_references()
    config.pruning.method, config.train.seed = method, seed
    for key, value in changes.items():
        room, name = key.split("__")
        config[room][name] = value
    resolved, _ = config_lib.resolve(config, {})
    folder.mkdir(parents=True)
    files.write_json(folder / "config.json", config_lib.to_json(resolved))
    writer = report.MetricsWriter(folder, sinks=())
    for one in rows:
        writer.write(one)
        writer.write_layers(one["epoch"], {"layer_0/query": one["sparsity"], "classifier": one["sparsity"] / 2})
    writer.close()
    files.write_json(
        folder / "summary.json",
        {
            "method": method, "task": task, "model_size": "tiny", "metric_name": "accuracy", "seconds": 3.0,
            "sparsity": rows[-1]["sparsity"], "best_metric": rows[-1]["eval_metric"],
            "final_metric": rows[-1]["eval_metric"], "device": "1 x cpu", "versions": {"jax": "0.10"},
        },
    )  # fmt: skip
    return folder


def test_the_number_of_a_sparsity():
    assert study.at_sparsities(PRUNED) == {0.0: (0.72, True), 0.5: (0.68, True), 0.75: (0.64, True)}
    assert study.at_sparsities(PRUNED[:3]) == {0.0: (0.72, True), 0.5: (0.68, True), 0.75: (0.50, False)}
    inside = [*PRUNED[:2], row(3, 0.75, 0.55, before=0.56, sparsity_before=0.74), PRUNED[3]]  # pruned within epoch 3
    assert study.at_sparsities(inside) == {0.0: (0.72, True), 0.5: (0.60, False), 0.75: (0.64, True)}
    at_once = [row(1, 0.5, 0.6, before=0.7, sparsity_before=0.0), row(2, 0.5, math.nan, sparsity_before=0.5)]
    assert study.at_sparsities(at_once) == {0.0: (0.7, True), 0.5: (0.6, False)}


def shifted(rows, by):
    return [{**r, **{k: r[k] + by for k in ("eval_metric", "metric_before_pruning")}} for r in rows]


@pytest.fixture
def runs(small_config, tmp_path):
    made = [make_run(tmp_path / "runs" / "b0", small_config, DENSE, "baseline")]
    for seed, by in enumerate((0.0, 0.02, 0.10)):
        made.append(make_run(tmp_path / "runs" / f"s{seed}", small_config, shifted(PRUNED, by), "spt", seed))
    made.append(make_run(tmp_path / "runs" / "m0", small_config, shifted(PRUNED[:3], 0.05), "magnitude"))
    return made


def test_mean_and_spread_over_seeds(runs):
    (panel,) = study.panels(study.read(runs))
    assert [line.label for line in panel.lines] == ["baseline", "spt", "magnitude"]
    baseline, spt, magnitude = panel.lines
    assert baseline.cells == [study.Cell(0.0, 0.70, None, 1, True)]
    assert [cell.sparsity for cell in spt.cells] == [0.0, 0.5, 0.75]
    mean = 0.64 + 0.12 / 3  # 0.64, 0.66, 0.74
    std = math.sqrt(((0.64 - mean) ** 2 + (0.66 - mean) ** 2 + (0.74 - mean) ** 2) / 2)
    last = spt.cells[-1]
    assert (last.mean, last.std, last.seeds, last.retrained) == (pytest.approx(mean), pytest.approx(std), 3, True)
    assert magnitude.cells[-1] == study.Cell(0.75, pytest.approx(0.55), None, 1, False)
    assert spt.step_ms == (50.0, 0.0)  # the median epoch: 0.5 s for 10 steps; the first compiles
    assert [label for label, _ in panel.ranking(0.75)] == ["spt", "magnitude"]
    assert panel.winner(0.75) is None  # magnitude has a single seed, and so no spread
    text = "\n".join(study.table([panel], bold=True))
    assert f"{last.mean:.4f} ± {std:.4f}" in text and "0.5500 †" in text and "\x1b[1m" not in text
    assert study.sentence(panel) == (
        f"At 75% on single spt keeps {mean:.4f} of the dense {panel.ranking(0.0)[0][1].mean:.4f} (accuracy); "
        f"magnitude is {mean - 0.55:.4f} behind, and a single seed has no spread."
    )


def line(label, mean, std, sparsity=0.9):
    cells = [study.Cell(0.0, 0.789, 0.001, 3, True), study.Cell(sparsity, mean, std, 3, True)]
    return study.Line(label, cells, [], (1.0, None), [f"{label}{i}" for i in range(3)])


@pytest.mark.parametrize(("ahead", "said"), [(0.031, "beyond the spread"), (0.029, "within the spread")])
def test_a_winner_is_ahead_by_more_than_both_spreads(ahead, said):
    panel = study.Panel("sst2", "tiny", "accuracy", [line("spt", 0.776 - ahead, 0.02), line("magnitude", 0.776, 0.01)])
    assert panel.winner(0.9) == ("magnitude" if "beyond" in said else None) and panel.winner(0.0) is None
    assert study.sentence(panel) == (
        f"At 90% on sst2 magnitude keeps 0.7760 of the dense 0.7890 (accuracy); spt is {ahead:.4f} behind, {said} of "
        "the seeds."
    )
    bold = "\n".join(study.table([panel], bold=True))
    assert ("\x1b[1m0.7760 ± 0.0100\x1b[0m" in bold) == ("beyond" in said) and bold.count("\x1b[1m") <= 1


def test_the_sentence_is_of_the_sparsity_that_most_lines_have_reached():
    lines = [line("a", 0.7, 0.0), line("b", 0.6, 0.0), line("c", 0.5, 0.0, sparsity=0.99)]
    assert study.sentence(study.Panel("rte", "tiny", "accuracy", lines)).startswith("At 90% on rte a keeps 0.7000")
    dense = study.Line("baseline", [study.Cell(0.0, 0.7, None, 1, True)], [], (1.0, None), ["x"])
    assert study.sentence(study.Panel("rte", "tiny", "accuracy", [dense])) == ""


def test_the_page_says_what_its_numbers_are_held_against(runs, tmp_path):
    for folder in runs:
        summary = files.read_json(folder / "summary.json")
        files.write_json(folder / "summary.json", summary | {"eval_examples": 872, "chance": 0.509})
    compare.write(runs, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "872 evaluation examples; a constant answer has 0.5090; the dense level is 0." in text
    assert "; n = 1 to 3 runs per line." in text
    assert text.index('<p class="result">At 75% on single spt keeps 0.6800') < text.index("<h2>")
    chart = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["charts"][0]
    seeds = {one["label"]: [point["seeds"] for point in one["points"]] for one in chart["series"]}
    assert sorted(seeds["spt"][-1]) == [0.64, 0.66, 0.74] and seeds["magnitude"][-1] == []


def test_a_run_that_is_older_than_a_key_has_its_default(small_config, tmp_path):
    folders = [make_run(tmp_path / str(seed), small_config, PRUNED, seed=seed) for seed in range(2)]
    saved = files.read_json(folders[0] / "config.json")
    assert saved["spt"].pop("absolute") is False
    files.write_json(folders[0] / "config.json", saved)
    results = study.read(folders)
    assert study.differences(results) == ["train.seed"]
    (panel,) = study.panels(results)
    assert [(line.label, line.runs) for line in panel.lines] == [("spt", ["0", "1"])]


def test_variants_and_tasks(small_config, tmp_path):
    folders = [
        make_run(tmp_path / "a", small_config, PRUNED, spt__epsilon=0.1),
        make_run(tmp_path / "b", small_config, PRUNED, spt__epsilon=0.2),
        make_run(tmp_path / "c", small_config, PRUNED, "magnitude", spt__epsilon=0.3),  # not magnitude's key
        make_run(tmp_path / "d", small_config, shifted(PRUNED[:3], 0.1), spt__epsilon=0.2, pruning__end_sparsity=0.5),
        make_run(tmp_path / "e", small_config, PRUNED, task="pair"),
    ]
    single, pair = study.panels(study.read(folders))
    assert [line.label for line in single.lines] == ["spt epsilon=0.1", "spt epsilon=0.2", "magnitude"]
    best = {cell.sparsity: cell for cell in single.lines[1].cells}
    assert best[0.5] == study.Cell(0.5, pytest.approx(0.78), None, 1, True)  # d's, the better of one seed's two
    assert best[0.75].mean == 0.64  # retrained, though d has 0.60 right after pruning
    assert [line.label for line in pair.lines] == ["spt"] and pair.title == "pair, tiny: accuracy"
    for folder, data in zip(folders, ("abcdef01", "98765432", "abcdef01"), strict=False):
        files.write_json(folder / "data.json", {"sha256": data})
    single, pair = study.panels(study.read(folders))  # b has read other examples under the same keys
    labels = ["spt epsilon=0.1 data=abcdef", "spt epsilon=0.2 data=987654", "magnitude data=abcdef"]
    assert [line.label for line in single.lines] == [*labels, "spt epsilon=0.2 data=?"] and len(pair.lines) == 1


def test_every_folder_that_cannot_be_read_is_named(runs, tmp_path, capsys):
    (runs[0] / "summary.json").unlink()
    code = main(["compare", *map(str, runs), str(tmp_path / "gone"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert code == 2 and f"the run in {runs[0]} is not finished" in said and f"{tmp_path / 'gone'} is not" in said
    assert not (tmp_path / "out").exists()


def test_files(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", *map(str, runs), str(runs[0]), "--out", str(out)]) == 0
    assert "0.5500 †" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "summary.csv").read_text().splitlines()))
    assert len(rows) == 1 + 3 + 3 and rows[0]["std"] == "" and rows[3]["method"] == "spt"
    assert [r["name"] for r in csv.DictReader((out / "runs.csv").read_text().splitlines())] == [r.name for r in runs]
    from matplotlib.image import imread

    for name in ("metric", "loss", "time"):
        image = imread(out / "plots" / f"{name}.png")[..., :3]
        orange = [0xD5 / 255, 0x5E / 255, 0x00 / 255]
        assert (abs(image - orange).max(axis=-1) < 0.02).sum() > 50  # spt's line or bar


class Page(html.parser.HTMLParser):
    """The cells of the results, and whatever would load something."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.loads, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.loads += [value for name, value in attrs.items() if name in ("src", "href")]
        if "data-mean" in attrs:
            self.cells.append({name.removeprefix("data-"): value for name, value in attrs.items() if "data-" in name})


def test_the_page_is_self_contained_and_escapes(small_config, tmp_path):
    nasty = '</script><img src=x onerror="document.title=1">&\u2028'
    folder = make_run(tmp_path / "<b>run", small_config, PRUNED, report__project=nasty, data__tokenizer="<i>")
    other = make_run(tmp_path / "other", small_config, PRUNED, seed=1)
    compare.write([folder, other], tmp_path / "out", {"<u>late": "failed"}, title="<b>study</b>")
    text = (tmp_path / "out" / "report.html").read_text()
    found = Page(text)
    assert not found.loads and not {"img", "b", "i", "u", "link"} & set(found.tags[found.tags.index("body") :])
    assert len(text) < 5_000_000 and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text.count("</script>") == 2
    embedded = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert embedded["layers"][0]["name"] == "<b>run" and embedded["layers"][0]["values"][0] == [0, 0.5, 0.7501, 0.7501]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_the_numbers_of_summary_csv(runs, tmp_path, width):
    out = tmp_path / "out"
    compare.write(runs, out)
    probe = (  # runs after the page's own script: overflow of the page, errors, and a look at the first curve
        "<script>onerror=e=>{document.body.dataset.error=e;document.body.dataset.done=1};"
        "addEventListener('load',()=>{const wait=setInterval(()=>{"
        "const s=document.querySelector('#metric0 svg');if(!s)return;clearInterval(wait);"
        "const b=s.getBoundingClientRect();"
        "s.dispatchEvent(new PointerEvent('pointermove',{clientX:b.right}));"
        "document.body.dataset.overflow=document.documentElement.scrollWidth-innerWidth;"
        "document.body.dataset.width=innerWidth;"
        "document.body.dataset.readout=document.querySelector('#metric0 .readout').textContent;"
        "document.querySelectorAll('#metric0 button')[1].click();"
        "document.body.dataset.lines=document.querySelectorAll('#metric0 polyline').length;"
        "document.body.dataset.done=1;},50)})</script>"
    )
    inner = (out / "report.html").read_text().replace("</head>", probe + "</head>")
    # In a frame: no window of Chromium is as narrow as a phone.
    shown = out / "framed.html"
    shown.write_text(
        f'<body><iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(inner)}"></iframe>'
        "<script>const wait=setInterval(()=>{"  # however slow the machine: until the probe has seen what it looks for
        "const page=document.querySelector('iframe').contentDocument;if(!page?.body?.dataset.done)return;"
        "clearInterval(wait);document.body.textContent=page.documentElement.outerHTML},50)</script></body>"
    )
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1500,1000", "--virtual-time-budget=20000", "--dump-dom", shown.as_uri(),
    ]  # fmt: skip
    dom = html.unescape(subprocess.run(command, capture_output=True, text=True, timeout=900, check=True).stdout)
    body = re.search(r"<body data[^>]*>", dom)[0]
    assert "data-error" not in body and f'data-width="{width}"' in body
    assert int(re.search(r'data-overflow="(-?\d+)"', body)[1]) <= 0  # nothing runs out of the window's side
    rows = list(csv.DictReader((out / "summary.csv").read_text().splitlines()))
    cells = Page(dom).cells
    assert len(cells) == len(rows)
    by_place = {(c["task"], c["method"], c["sparsity"]): c for c in cells}
    for r in rows:
        cell = by_place[r["task"], r["method"], r["sparsity"]]
        assert (cell["mean"], cell["seeds"], cell["retrained"]) == (r["mean"], r["seeds"], r["retrained"])
        assert cell["std"] == (r["std"] or "None")
    last = [r for r in rows if r["method"] == "spt"][-1]
    readout = re.search(r'data-readout="([^"]*)"', body)[1]
    assert readout.startswith("75%") and f"spt {float(last['mean']):.4f} ± {float(last['std']):.4f}" in readout
    assert 'data-lines="2"' in body  # spt's line was switched off
    assert dom.count("<rect") == 4 * 2  # the heat map of the first pruned run: epochs x layers


def test_a_large_study_makes_no_large_page(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_HEAT_CELLS", 30)  # a pruned run has 4 rows of epoch and 2 layers, the dense one 1 row
    compare.write(runs, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "of the first 2 of 4 pruned runs" in text and '"name":"s1"' in text and '"name":"s2"' not in text


def test_styles_tell_many_lines_apart():
    lines = [study.Line(str(i), [], [], (1.0, None), []) for i in range(3 * len(page.COLORS))]
    looks = page.styles([study.Panel("t", "tiny", "accuracy", lines)])
    assert len(set(looks.values())) == len(looks)


def test_long_labels_leave_the_plots_their_room(tmp_path):
    cells = [study.Cell(0.5, 0.7, None, 1, True)]
    labels = [f"{'_'.join(['every', 'key'] * 20)}={i} {'and another one ' * 12}" for i in range(6)]
    lines = [study.Line(label, cells, [(1, 0.5, None)], (1.0, None), []) for label in labels]
    panels = [study.Panel("t", "tiny", "accuracy", lines)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # axes that collapse are a warning
        paths = plots.draw_study(tmp_path, panels, page.styles(panels))
    assert len(paths) == 3


def test_no_name_of_a_run_is_a_formula(runs, tmp_path):
    result = study.read([runs[0]])[0]._replace(name="=1+cmd|' /C calc'!A0", folder=Path("-2+3"))
    path = study.write_runs(tmp_path, [result], {"@SUM(A1)": "failed", "+1": "failed"})
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["name"] for row in rows] == ["'=1+cmd|' /C calc'!A0", "'@SUM(A1)", "'+1"]
    assert rows[0]["folder"] == "'-2+3" and float(rows[0]["final_metric"]) == result.summary["final_metric"]


def test_nothing_finished_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        study.read([tmp_path])


def test_accuracy_stands_against_what_networks_cost(small_config, tmp_path):
    folders = []
    costs = {"a": (8e6, 2.0, 0.7), "b": (16e6, 1.0, 0.6), "c": (24e6, 3.0, 0.8), "d": None}
    for name, its in costs.items():
        rows = PRUNED if its is None else [*PRUNED[:3], row(4, 0.75, its[2], sparsity_before=0.75)]
        folders.append(make_run(tmp_path / name, small_config, rows, seed=len(folders)))
        if its:
            summary = files.read_json(folders[-1] / "summary.json")
            cost = {"batch": 8, "length": 32, "flops": {"pruned": its[0]}, "milliseconds": {"pruned": its[1]}}
            cost["bytes"] = {"pruned": 1000 * its[1]}
            files.write_json(folders[-1] / "summary.json", {**summary, "cost": cost})
    results = study.read(folders)
    (panel,) = study.panels(results)
    found = study.spots(panel, results)
    assert [(spot.flops, spot.milliseconds, spot.metric) for spot in found] == [
        (1e6, 2.0, 0.7), (2e6, 1.0, 0.6), (3e6, 3.0, 0.8)
    ]  # fmt: skip
    compare.write(folders, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    charts = {c["id"]: c for c in json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["charts"]}
    names = ("flops0", "milliseconds0", "bytes0")
    fronts = {name: [(p["x"], p["y"]) for p in charts[name]["series"][-1]["points"]] for name in names}
    by_time = [(1, 0.6), (2, 0.7), (3, 0.8)]
    assert fronts == {"flops0": [(1, 0.7), (3, 0.8)], "milliseconds0": by_time, "bytes0": by_time}
    assert text.count('<figure id="flops0">') == text.count('<figure id="milliseconds0">') == 1
    compare.write(folders[3:], tmp_path / "none")
    assert '"flops0"' not in (tmp_path / "none" / "report.html").read_text()
