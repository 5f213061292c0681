"""What a run says on the console: what it is about to do, each epoch in a line, the result and what to do next."""

from pathlib import Path

import jax

from prune_jax import config as config_lib
from prune_jax import methods
from prune_jax.config.schedules import sparsity_schedule
from prune_jax.models import units
from prune_jax.pruning import trees
from prune_jax.pruning.select import portion
from prune_jax.run import dense


def parameter_overview(params, gates) -> list[str]:
    """Lines of a table: parameters and gates of each module of the network, and their sums."""

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    rows = [(name, size(params[name]), size(gates.get(name, {}))) for name in params]
    rows.append(("total", size(params), size(gates)))
    width = max(len(name) for name, *_ in rows)
    return [f"{'module':<{width}}  {'parameters':>12}  {'prunable':>12}"] + [
        f"{name:<{width}}  {count:>12,}  {gated:>12,}" for name, count, gated in rows
    ]


def describe(config, dataset, schedule, steps_per_epoch, epochs) -> list[str]:
    p, t = config.pruning, config.train
    devices = jax.devices()
    over = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    cut = f" ({t.max_steps} in all)" if t.max_steps and t.max_steps < t.epochs * steps_per_epoch else ""
    lines = [
        f"data      {dataset.description}",
        f"training  {epochs} epochs of {steps_per_epoch} steps{cut}, batch {t.batch_size}, learning rate "
        f"{t.learning_rate:g} ({t.lr_schedule}), {config.model.dtype}, seed {t.seed}, on {len(devices)} x "
        f"{devices[0].device_kind}{over}",
    ]
    if methods.scheduled(p.method):
        targets = " ".join(f"{100 * schedule(epoch):g}" for epoch in range(1, epochs + 1))
        lines.append(f"pruning   {p.method}, scope {p.scope}; percent closed after each epoch: {targets}")
    return lines


def coverage(network: tuple, config) -> list[str]:
    """What the user is to know of a structure that does not cover every kernel."""
    (model, _, plan), cfg = network, config.pruning
    closes = methods.scheduled(cfg.method) or cfg.method in methods.ONESHOT
    if not closes or cfg.structure == "unstructured":
        return []
    names = [name for part in plan.parts for name in part.names]
    types = ", ".join(plan.layers.ordered([plan.layers.type_of(name) for name in names]))
    share = plan.reach(units.gate_shapes(model, config_lib.structure(config)))
    return [
        f"config.pruning.structure={cfg.structure} covers {types}, {100 * share:.3g}% of the prunable weights; the "
        "targets refer to them, the rest stays open"
    ]


def closed_whole(network: tuple, config) -> list[str]:
    """A note that names what a high target leaves nothing of: kernels of scope "local", such as 33 weights at 99.9%, or
    groups of scope "global".
    """
    (model, method, plan), final = network, sparsity_schedule(config)(config.train.epochs)
    structure = config_lib.structure(config)
    if method.scheduled and (emptied := plan.emptied(units.gate_shapes(model, structure), final)):
        return [
            f"{100 * final:g}% is beyond what {structure} saves while each group keeps a unit: "
            f"{', '.join(emptied[:6])} may lose the last one, and the network is constant where nothing goes past "
            "such a group"
        ]
    kinds = {part.structure.kind for part in plan.parts}
    if not method.scheduled or plan.scope != "local" or kinds != {"unstructured"} or final == 1:
        return []
    sizes = {name: leaf.size for name, leaf in trees.by_name(units.gate_shapes(model, "unstructured")).items()}
    names = [name for name, size in sizes.items() if plan.covers(name) and int(portion(final, size)) == size]
    few = "; ".join(f"{name} has {sizes[name]}" for name in names)
    return names and [
        f"{100 * final:g}% of each kernel closes some whole ({few} weights): config.pruning.scope=global leaves the "
        "choice to the scores"
    ]


def epoch_line(row: dict, metric_name: str, epochs: int, moved: bool) -> str:
    """The line of an epoch, of its row in metrics.csv.

    Args:
      moved: whether gates closed at the epoch's end. The metric right after is low, and training on mends it: the line
        has both, lest the saw-tooth look like instability.
    """
    others = [f"{k.removeprefix('eval_')} {v:.4f}" for k, v in row.items() if k.startswith("eval_") and k not in
              ("eval_loss", "eval_metric")]  # fmt: skip
    metric = f"{metric_name} {row['eval_metric']:.4f}"
    if moved:
        before, after = row["metric_before_pruning"], row["eval_metric"]
        metric = f"{metric_name} before the cut {before:.4f}, after it {after:.4f}"
    return "  ".join(
        [
            f"epoch {row['epoch']}/{epochs}",
            f"train loss {row['train_loss']:.4f}",
            f"eval loss {row['eval_loss']:.4f}",
            metric,
            *others,
            f"sparsity {100 * row['sparsity']:.2f}% (target {100 * row['target_sparsity']:g}%)",
            f"{row['seconds']:.1f} s",
        ]
    )


def _against_dense(name: str, best: float, workdir: Path) -> str:
    found = dense.neighbour(workdir)
    if found is None:
        return f"to compare with a dense run of the same length: {dense.command(workdir)}"
    where = str(found.folder) + ("" if found.same_seed else f", seed {found.seed}")
    return f"a dense run of the same length has {name} {found.metric:.4f} ({best - found.metric:+.4f}): {where}"


def closing_lines(summary: dict, workdir: Path, model) -> list[str]:
    """The end of a run: its metric beside the dense one, its size and speed, where the plots are, what comes next.

    A run beside `workdir` that trained the dense network as long gives the level to compare with. Without one, the
    command of such a run is recommended.
    """
    name, best, start = summary["metric_name"], summary["best_metric"], summary["dense_metric"]
    line = f"best {name} {best:.4f} at {100 * summary['best_sparsity']:.2f}% sparsity (epoch {summary['best_epoch']})"
    pruned = summary["best_sparsity"] > 0
    if pruned:
        line += (
            f"; dense start {start:.4f} ({best - start:+.4f})" if start is not None else "; no dense epoch before it"
        )
    lines = [line]
    if pruned:
        lines.append(_against_dense(name, best, workdir))
    if (sparsity := summary["sparsity"]) > 0:
        closed = round(sparsity * summary["num_prunable"])
        left = summary["num_params"] - closed
        line = f"weights {summary['num_params']:,} -> {left:,} that are not closed"
        if cost := summary.get("cost"):
            size, time = cost["bytes"], cost["milliseconds"]
            line += (
                f"; cut out, {size['dense']:,} -> {size['pruned']:,} bytes and {time['dense']:.2f} -> "
                f"{time['pruned']:.2f} ms per {cost['batch']} examples"
            )
        lines.append(line)
    text = "input_ids" in model.inputs
    run, out = str(workdir), f"{workdir}_export"
    commands = [
        f"compress {run} {run}.pjx",
        f"export {run} {out}" + ("" if text else " --format=stablehlo"),
        f"compare {run} OTHER_RUN",
    ]
    if name != "perplexity":  # a decoder has no classes
        commands.insert(2, f"predict {run} " + ('--text "..."' if text else "--in FOLDER --out FILE.csv"))
    lines.append(f"plots in {workdir / 'plots'}, the numbers in {workdir / 'metrics.csv'}")
    lines += [f"next: prune-jax {command}" for command in commands]
    return [*lines, f"results in {workdir} ({summary['seconds']:.0f} s)"]
