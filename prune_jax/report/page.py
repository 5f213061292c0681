"""Writes report.html: one page that loads nothing, for a person who chooses between the runs of a study."""

import html
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from prune_jax import files
from prune_jax.report import study

# Okabe and Ito's palette in an order that keeps neighbours apart on a light and on a dark ground.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a")
_HEAT_CELLS = 300_000  # layers x epochs of all heat maps, at 8 bytes each, so that the page stays below 5 MB
_WINNER = "Bold: ahead of the next by more than both deviations together. In the curves small dots are single seeds."
_FOLDER = Path(__file__).parent


def styles(panels: Sequence[study.Panel]) -> dict[str, tuple[str, str]]:
    """The look of each label, (color, dash), which is the same in every panel. Dashes come in when colors run out."""
    labels = dict.fromkeys(line.label for panel in panels for line in panel.lines)
    dashes = ("none", "6 3", "2 3")
    return {label: (COLORS[i % len(COLORS)], dashes[i // len(COLORS) % len(dashes)]) for i, label in enumerate(labels)}


def _text(value) -> str:
    return html.escape(str(value), quote=True)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table in html. The head and the first column are text; the other cells are html already."""
    heads = "".join(f'<th scope="col">{_text(text)}</th>' for text in head)
    body = "".join(f'<tr><th scope="row">{_text(row[0])}</th>{"".join(row[1:])}</tr>' for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table{kind and f" class={kind}"}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _results(panel: study.Panel) -> str:
    columns = [{cell.sparsity: cell for cell in line.cells} for line in panel.lines]
    rows = []
    for x in panel.sparsities:
        row = [study.percent(x)]
        for line, column in zip(panel.lines, columns, strict=True):
            if x not in column:
                row.append("<td></td>")
                continue
            cell = column[x]
            best = ' class="best"' if line.label == panel.winner(x) else ""
            tags = (f'data-{name}="{_text(value)}"' for name, value in zip(cell._fields, cell, strict=True))
            where = f'data-task="{_text(panel.task)}" data-method="{_text(line.label)}"'
            row.append(f"<td{best} {where} {' '.join(tags)}>{_text(study.number(cell))}</td>")
        rows.append(row)
    return _table(["sparsity", *(line.label for line in panel.lines)], rows)


def _times(panel: study.Panel) -> str:
    rows = []
    for line in panel.lines:
        mean, std = line.step_ms
        rows.append(
            [line.label, f"<td>{mean:.1f}{'' if std is None else f' ± {std:.1f}'}</td>", f"<td>{len(line.runs)}</td>"]
        )
    return _table(["method", "ms per step", "runs"], rows)


def _differences(results: Sequence[study.Result]) -> str:
    keys = study.differences(results)
    if not keys:
        return "<p>All runs have the same configuration.</p>"
    rows = [[r.name, *(f"<td>{_text(r.config.get(key, ''))}</td>" for key in keys)] for r in results]
    return _table(["run", *keys], rows, "text")


def _common(results: Sequence[study.Result]) -> str:
    differing = set(study.differences(results))
    same = {key: value for key, value in results[0].config.items() if key not in differing}
    return _table(
        ["key", "value"], [[key, f'<td class="wrap">{_text(value)}</td>'] for key, value in same.items()], "text"
    )


def _environment(results: Sequence[study.Result]) -> str:
    """A table of facts: the value of each, or several values, each with the number of its runs."""
    facts: dict[str, dict[str, int]] = {}
    for result in results:
        own = {"device": result.summary.get("device")}
        own |= {key: result.provenance.get(key) for key in ("platform", "python", "commit", "dirty")}
        own |= result.summary.get("versions") or {}
        for key, value in own.items():
            counts = facts.setdefault(key, {})
            counts[str(value)] = counts.get(str(value), 0) + 1
    rows = []
    for key, counts in facts.items():
        text = next(iter(counts)) if len(counts) == 1 else "; ".join(f"{v} ({n} runs)" for v, n in counts.items())
        rows.append([key, f'<td class="wrap">{_text(text)}</td>'])
    return _table(["what", "value"], rows, "text")


def _runs(results: Sequence[study.Result], unfinished: dict[str, str]) -> str:
    rows = []
    for r in results:
        s = r.summary
        rows.append([
            r.name, "<td>finished</td>", f"<td>{study.percent(round(s['sparsity'], 4))}</td>",
            f"<td>{_text(s['metric_name'])} {s['final_metric']:.4f}</td>", f"<td>{s['seconds']:.0f} s</td>",
        ])  # fmt: skip
    rows += [
        [name, f"<td>{_text(state)}</td>", "<td></td>", "<td></td>", "<td></td>"] for name, state in unfinished.items()
    ]
    return _table(["run", "state", "final sparsity", "final metric", "time"], rows, "runs")


def _finite(value) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _data(results, panels, looks) -> dict:
    charts = []
    for i, panel in enumerate(panels):
        curves = {
            "metric": [
                [(100 * c.sparsity, c.mean, c.std, c.retrained, line.values.get(c.sparsity, ())) for c in line.cells]
                for line in panel.lines
            ],
            "loss": [[(*point, None, ()) for point in line.losses] for line in panel.lines],
        }
        for name, axis, unit in (("metric", "sparsity", "%"), ("loss", "epoch", "")):
            series = [
                {
                    "label": line.label,
                    "color": looks[line.label][0],
                    "dash": looks[line.label][1],
                    "points": [
                        {"x": round(x, 4), "y": y, "sd": sd, "retrained": after, "seeds": [*seeds] if sd else []}
                        for x, y, sd, after, seeds in points
                        if _finite(y) is not None
                    ],
                }
                for line, points in zip(panel.lines, curves[name], strict=True)
            ]
            y = panel.metric if name == "metric" else "evaluation loss"
            charts.append({"id": f"{name}{i}", "series": series, "x": axis, "y": y, "unit": unit})
        charts += _cost_charts(i, panel, study.spots(panel, results), looks)
    layers, room = [], _HEAT_CELLS
    for result in results:
        room -= sum(len(row) for row in result.layers)
        if room > 0 and study.pruned(result):
            names = [key for key in result.layers[0] if key != "epoch"]
            values = [[round(row[name] or 0, 5) for row in result.layers] for name in names]
            epochs = [row["epoch"] for row in result.layers]
            layers.append({"name": result.name, "epochs": epochs, "layers": names, "values": values})
    return {"charts": charts, "layers": layers}


_COSTS = (
    ("flops", "MFLOPs per example", 1e6, ""),
    ("milliseconds", "milliseconds per batch", 1, " ms"),
    ("bytes", "kilobytes of weights", 1e3, " kB"),
)


def _costs(spots: Sequence[study.Spot]) -> list[tuple[str, str, float, str]]:
    """Those of _COSTS that every spot has."""
    return [cost for cost in _COSTS if spots and all(math.isfinite(getattr(spot, cost[0])) for spot in spots)]


def _cost_charts(i: int, panel: study.Panel, spots: Sequence[study.Spot], looks: dict) -> list[dict]:
    """The charts of a panel's metric against what the networks cost, each with its Pareto front."""
    charts = []
    for name, axis, scale, unit in _costs(spots):
        at = [(spot.label, round(getattr(spot, name) / scale, 6), spot.metric) for spot in spots]
        points = {label: [(x, y) for one, x, y in at if one == label] for label in dict.fromkeys(p[0] for p in at)}
        series = [
            {"label": label, "color": looks[label][0], "dash": "none", "apart": True, "points": _points(its)}
            for label, its in points.items()
        ]
        best = _points(study.front(((x, y) for _, x, y in at), panel.metric))
        series.append({"label": "Pareto front", "color": "#8a8a8a", "dash": "2 3", "points": best})
        charts.append({"id": f"{name}{i}", "series": series, "x": axis, "y": panel.metric, "unit": unit})
    return charts


def _points(pairs: Sequence[tuple[float, float]]) -> list[dict]:
    return [{"x": x, "y": y, "sd": None, "retrained": True, "seeds": []} for x, y in sorted(pairs)]


def render(
    results: Sequence[study.Result], panels: Sequence[study.Panel], unfinished: dict[str, str], title: str
) -> str:
    """The page as html. Every text of a config or of a folder's name is escaped."""
    looks = styles(panels)
    data = _data(results, panels, looks)
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = [f"<h1>{_text(title)}</h1>"]
    count = f"{len(results)} finished runs" + (f", {len(unfinished)} without a result" if unfinished else "")
    parts.append(f'<p class="note">{count}. Written {time.strftime("%Y-%m-%d %H:%M")}.</p>')
    parts += [f'<p class="result">{_text(text)}</p>' for panel in panels if (text := study.sentence(panel))]
    for i, panel in enumerate(panels):
        parts += [
            f"<h2>{_text(panel.title)}</h2>",
            f'<p class="note">{_text(study.scale(panel, results))}</p>',
            _results(panel),
            f'<p class="note">{_text(study.CAPTION)} {_WINNER}</p>',
            '<div class="grid">',
            f'<figure id="metric{i}"><figcaption>{_text(panel.metric)} against sparsity</figcaption></figure>',
            f'<figure id="loss{i}"><figcaption>Evaluation loss after each epoch</figcaption></figure>',
            *(
                f'<figure id="{name}{i}"><figcaption>{_text(panel.metric)} against {axis}, as cut</figcaption></figure>'
                for name, axis, *_ in _costs(study.spots(panel, results))
            ),
            "</div>",
            "<h3>Time per step</h3>",
            _times(panel),
            '<p class="note">The median epoch\'s seconds over its steps, evaluation and pruning included.</p>',
        ]
    if data["layers"]:
        parts.append("<h2>Sparsity by layer</h2>")
        pruned = sum(study.pruned(result) for result in results)
        caption = "Closed share of each kernel after each epoch"
        if len(data["layers"]) < pruned:
            caption += f" (of the first {len(data['layers'])} of {pruned} pruned runs: the page stays small)"
        parts.append(f'<figure id="layers"><figcaption>{caption}</figcaption></figure>')
    if results:
        parts += ["<h2>What differs between the runs</h2>", _differences(results)]
        parts += ["<details><summary>What they have in common</summary>", _common(results), "</details>"]
        parts += ["<h2>Environment</h2>", _environment(results)]
    parts += ["<h2>Runs</h2>", _runs(results, unfinished)]
    css, script = ((_FOLDER / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # a browser loads nothing
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_text(title)}</title><style>{css}</style></head>\n<body>"
        + "\n".join(parts)
        + f'<script type="application/json" id="data">{embedded}</script><script>{script}</script></body></html>\n'
    )


def write(folder, *args, **kwargs) -> Path:
    """Writes folder/report.html, whole or not at all, and returns its path. The other arguments are those of render."""
    path = Path(folder) / "report.html"
    files.write_text(path, render(*args, **kwargs))
    return path
