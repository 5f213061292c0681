"""Which groups each network offers, and what pins the rest: the table of docs/results/graph.md.

python -m benchmarks.graph_table
"""

import argparse
from collections import Counter

import prune_jax as pj
from benchmarks import harness
from benchmarks.looped_networks import NETWORKS

HEAD = (
    "| network | cut exactly: kind, groups × units | cutting changes the function | pinned by |\n"
    "| --- | --- | --- | --- |"
)


def row(name: str, graph: pj.Graph) -> str:
    """A network's row: groups that can be cut by kind, those that change the function with what does, pins."""
    groups = list(graph.groups.values())
    kinds: dict[str, list[int]] = {}
    for group in groups:
        if group.prunable and group.exact:
            kinds.setdefault(group.kind, []).append(group.size)
    offered = ", ".join(f"{kind} {len(sizes)} × {_sizes(sizes)}" for kind, sizes in kinds.items())
    changing = "; ".join(f"{g.name}: {(g.inexact_because or '').split(' reads')[0]}" for g in groups if not g.exact)
    pins = Counter(group.reason for group in groups if not group.prunable)
    pinned = "; ".join(f"{reason} ({times})" if times > 1 else str(reason) for reason, times in pins.items())
    return f"| {name} | {offered} | {changing} | {pinned} |"


def _sizes(sizes: list[int]) -> str:
    least, most = min(sizes), max(sizes)
    return str(least) if least == most else f"{least} to {most}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON line per network, its groups and the machine")
    lines = parser.parse_args().json
    if not lines:
        print(HEAD)
    for name, make in NETWORKS.items():
        net = make()
        graph = pj.trace(net.fn, net.params, *net.inputs)
        if not lines:
            print(row(name, graph))
            continue
        groups = [
            {
                "name": g.name,
                "kind": g.kind,
                "size": int(g.size),
                "pinned_by": g.reason,
                "changed_by": g.inexact_because,
            }
            for g in graph.groups.values()
        ]
        harness.report(benchmark="graph_table", network=name, groups=groups, unknown=graph.unknown)


if __name__ == "__main__":
    main()
