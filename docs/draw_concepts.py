"""Draws docs/concepts.svg: a step from scores to gates, the structures, the scopes, a schedule.

python docs/draw_concepts.py
"""

import random
from pathlib import Path

BLUE, ORANGE, INK, GREY, PALE = "#0072B2", "#D55E00", "#222222", "#6b6b6b", "#eef2f6"
CELL = 15
out: list[str] = []


def text(x, y, words, size=14, color=INK, weight="normal", anchor="start"):
    out.append(
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" font-weight="{weight}" text-anchor="{anchor}">'
        f"{words}</text>"
    )


def grid(x, y, rows, columns, closed, marked=()):
    """A kernel, its inputs downwards; a cell is a gate. closed, marked: (row, column) -> bool."""
    for row in range(rows):
        for column in range(columns):
            left, top = x + column * CELL, y + row * CELL
            fill = "white" if closed(row, column) else BLUE
            out.append(
                f'<rect x="{left}" y="{top}" width="{CELL - 2}" height="{CELL - 2}" rx="2" fill="{fill}" '
                f'stroke="{BLUE}" stroke-width="1"/>'
            )
    for row, column, height, width in marked:
        out.append(
            f'<rect x="{x + column * CELL - 2.5}" y="{y + row * CELL - 2.5}" width="{width * CELL + 3}" '
            f'height="{height * CELL + 3}" rx="3" fill="none" stroke="{ORANGE}" stroke-width="2.5"/>'
        )


def box(x, y, width, title, *lines):
    out.append(f'<rect x="{x}" y="{y}" width="{width}" height="92" rx="8" fill="{PALE}" stroke="#c5cfda"/>')
    text(x + width / 2, y + 27, title, 16, INK, "bold", "middle")
    for i, line in enumerate(lines):
        text(x + width / 2, y + 51 + 19 * i, line, 13, GREY, anchor="middle")


def arrow(x, y, length, words=""):
    out.append(
        f'<path d="M{x} {y} h{length - 7}" stroke="{INK}" stroke-width="1.6" fill="none"/>'
        f'<path d="M{x + length} {y} l-9 -5 v10 z" fill="{INK}"/>'
    )
    if words:
        text(x + length / 2, y - 9, words, 13, INK, anchor="middle")


def at_random(seed, rows, columns, share):
    """(row, column) -> bool, True for exactly `share` of the gates."""
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    closed = set(random.Random(seed).sample(cells, round(share * len(cells))))
    return lambda row, column: (row, column) in closed


def two_of_four(row, column):
    """Whether a gate is closed: two of every four rows of a column are."""
    pairs = ((0, 1), (1, 3), (0, 2), (2, 3), (0, 3), (1, 2))
    return row % 4 in pairs[(column * 2 + row // 4 * 3) % 6]


def draw() -> str:
    text(30, 36, "One update of the gates", 18, INK, "bold")
    box(30, 54, 190, "method", "scores every gate from", "weights, gradients, losses")
    arrow(228, 100, 82, "scores")
    box(318, 54, 250, "plan", "closes the units of lowest score:", "structure, scope, rules")
    arrow(576, 100, 82, "gates")
    box(666, 54, 264, "network", "computes with weight × gate;", "closed weights are 0")
    out.append(
        f'<path d="M443 184 v-24" stroke="{INK}" stroke-width="1.6"/><path d="M443 151 l-5 9 h10 z" fill="{INK}"/>'
    )
    text(443, 202, "schedule: when, and up to which closed fraction", 13, INK, "normal", "middle")

    text(30, 252, "Structure: which gates close together", 18, INK, "bold")
    text(930, 252, "orange: one unit", 13, ORANGE, "bold", "end")
    grid(30, 290, 8, 8, at_random(3, 8, 8, 0.5), [(2, 2, 1, 1)])
    text(30, 278, "unstructured", 14)
    grid(200, 290, 8, 8, lambda r, c: (r // 2 + c // 4 * 3) % 2 == 0, [(4, 0, 2, 4)])
    text(200, 278, "block:2x4", 14)
    grid(370, 290, 8, 8, two_of_four, [(0, 3, 4, 1)])
    text(370, 278, "2:4, along the inputs", 14)
    closed_heads = (1, 3)
    grid(560, 290, 8, 8, lambda r, c: c // 2 in closed_heads, [(0, 2, 8, 2)])
    text(560, 278, "head: columns of query, key, value ...", 14)
    grid(740, 290, 8, 8, lambda r, c: r // 2 in closed_heads, [(2, 0, 2, 8)])
    text(740, 430, "... and rows of the output", 14)
    text(30, 430, "a unit is one gate", 13, GREY)
    text(200, 430, "R inputs, C outputs", 13, GREY)
    text(370, 430, "2 of every 4 stay open", 13, GREY)

    text(30, 488, "Scope: who shares the target, here 50 %", 18, INK, "bold")
    text(30, 516, "local: each kernel by itself", 14)
    grid(30, 528, 4, 8, at_random(1, 4, 8, 0.5))
    grid(170, 528, 4, 8, at_random(2, 4, 8, 0.5))
    text(30, 608, "50 %", 13, GREY)
    text(170, 608, "50 %", 13, GREY)
    text(330, 516, "global: all kernels together", 14)
    grid(330, 528, 4, 8, at_random(4, 4, 8, 0.75))
    grid(470, 528, 4, 8, at_random(5, 4, 8, 0.25))
    text(330, 608, "75 %", 13, GREY)
    text(470, 608, "25 %", 13, GREY)

    text(640, 488, "Schedule", 18, INK, "bold")
    x0, y0, width, height = 672, 590, 236, 58
    text(640, 516, "cubic(0.9, begin, end, every)", 14)
    out.append(f'<path d="M{x0} {y0 - height} V{y0} H{x0 + width}" stroke="{GREY}" fill="none"/>')
    points = [(0, 0.0), (0.12, 0.0)]
    for i in range(11):
        target = 0.9 * (1 - (1 - i / 10) ** 3)
        points += [(0.12 + 0.06 * i, points[-1][1]), (0.12 + 0.06 * i, target)]
    points.append((1, 0.9))
    path = " ".join(f"{x0 + width * x:.1f},{y0 - height * y:.1f}" for x, y in points)
    out.append(f'<polyline points="{path}" fill="none" stroke="{ORANGE}" stroke-width="2.5"/>')
    text(x0 - 6, y0 - height * 0.9 + 5, "0.9", 13, GREY, anchor="end")
    text(x0 - 6, y0 + 4, "0", 13, GREY, anchor="end")
    text(x0 + width * 0.12, 608, "begin", 13, GREY, anchor="middle")
    text(x0 + width * 0.72, 608, "end", 13, GREY, anchor="middle")
    text(x0 + width, 608, "steps", 13, GREY, anchor="end")
    body = "\n".join(out)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 630" width="960" height="630" '
        f'font-family="DejaVu Sans, Verdana, Helvetica, sans-serif">\n<rect width="960" height="630" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("concepts.svg").write_text(draw(), encoding="utf-8")
