"""The model card of an export: README.md, as the hub shows it, written from what the run has measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np

_HEAD = """---
library_name: transformers
pipeline_tag: text-classification
tags:
- pruned
- prune_jax
---

# {title}

A {kind} for {task}. {zeros:,} of {weights:,} weights of its kernels ({share:.2f} %) are exact zeros.

| what | value |
| --- | --- |
{rows}

## Use

AutoModel needs torch.

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = AutoModelForSequenceClassification.from_pretrained("{place}"{trust})
```

## Fine-tuning

One training step elsewhere makes other numbers of the zeros. They stay where masks hold them, in torch as in prune_jax:

```python
for module in filter(lambda module: isinstance(module, torch.nn.Linear), model.modules()):
    torch.nn.utils.prune.custom_from_mask(module, "weight", module.weight != 0)
```

```bash
prune-jax train --config=FILE --config.model.init_from={place} --config.model.keep_zeros=always
```

## Size

The file stores its zeros, so it is as large as a dense one: `prune-jax compress {place} OUT.pjx` stores what is left,
and `prune-jax export --shrink` cuts out heads and columns that are closed as a whole.
"""

_MEASURED = {  # kind of the checkpoint: its metric in the summary, under the first name that is there
    "best": ("best_metric",),
    "last": ("metric_before_quantising", "final_metric"),
    "quantised": ("final_metric",),
}


def zeros(tensors: Mapping[str, np.ndarray], kernels: Mapping[str, Any]) -> tuple[int, int]:
    """(the zeros, the weights) of the tensors of these names."""
    chosen = [tensors[name] for name in kernels if name in tensors]
    return sum(int(np.sum(tensor == 0)) for tensor in chosen), sum(tensor.size for tensor in chosen)


def write(
    config: Mapping[str, Any],
    counted: tuple[int, int],
    size: int,
    place: str,
    kind: str,
    summary: Mapping[str, Any],
    command: str,
) -> str:
    """The text of README.md.

    Args:
      config: the export's config.json.
      counted: as zeros counts them.
      size: of model.safetensors, in bytes.
      place: where the export is to be loaded from: its name on the hub, or its folder's.
      kind: which of the run's checkpoints it is.
      summary: the run's summary.json; empty of a run that has none.
      command: the run's command line; "" if nobody knows.
    """
    labels = config["id2label"].values()
    rows = [("classes", ", ".join(labels))] if config["problem_type"] != "regression" else []
    name = summary.get("metric_name", "metric")
    numbers = {key: value for key, value in summary.items() if isinstance(value, float)}  # a damaged one is left out
    after = next((numbers[key] for key in _MEASURED[kind] if key in numbers), None)
    rows += [("method", summary["method"])] if "method" in summary else []
    if after is not None:
        rows.append((f"{name}, this network ({kind})", f"{after:.4f}"))
    if "dense_metric" in numbers:
        rows.append((f"{name}, before pruning", f"{numbers['dense_metric']:.4f}"))
    rows.append(("model.safetensors", f"{size:,} bytes"))
    cost = summary.get("cost")
    if isinstance(cost, dict) and isinstance(times := cost.get("milliseconds"), dict) and len(times) == 2:
        dense, pruned = (times[which] for which in ("dense", "pruned"))
        on = f"{cost['batch']} texts of {cost['length']} tokens on {summary.get('device', 'its device')}"
        rows.append(("latency, dense and with --shrink", f"{dense:.2f} and {pruned:.2f} ms for {on}"))
    rows += [("made with", f"`{command}`")] if command else []
    closed, weights = counted
    return _HEAD.format(
        title=place.rstrip("/").split("/")[-1],
        kind=config["architectures"][0],
        task=summary.get("task", "the classification of texts"),
        zeros=closed,
        weights=weights,
        share=100 * closed / max(weights, 1),
        rows="\n".join(f"| {what} | {value} |" for what, value in rows),
        place=place,
        trust=", trust_remote_code=True" if "auto_map" in config else "",
    )
