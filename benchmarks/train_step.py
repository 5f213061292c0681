"""A full training step against transformers' BertForSequenceClassification in torch, in one process.

    python -m benchmarks.train_step        (needs torch)

Forward with dropout, backward, and AdamW, float32, batch 32 x 64 tokens, the same geometry on both sides. `ratio` is
prune_jax over torch: below 1, prune_jax is faster.
"""

import argparse

import jax
import numpy as np
import torch
import transformers

from benchmarks import harness
from benchmarks.spt_step import config_for


def torch_step(geometry: str, batch):
    layers, d_model, heads, d_ff = harness.GEOMETRIES[geometry]
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=harness.VOCABULARY,
            num_hidden_layers=layers,
            hidden_size=d_model,
            num_attention_heads=heads,
            intermediate_size=d_ff,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)
    names = ("input_ids", "token_type_ids", "attention_mask", "labels")
    inputs = {name: torch.from_numpy(np.array(batch[name])).long() for name in names}

    def step():
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    for geometry in harness.GEOMETRIES:
        batch = harness.make_batch()
        cases = {
            "prune_jax": harness.Training(harness.make_model(geometry), config_for("baseline"), batch),
            "torch": torch_step(geometry, batch),
        }
        seconds = harness.interleaved(cases, args.repeats)
        harness.report(
            benchmark="train_step",
            geometry=geometry,
            batch="32x64",
            seconds={name: round(value, 4) for name, value in seconds.items()},
            ratio=round(seconds["prune_jax"] / seconds["torch"], 3),
            torch=torch.__version__,
            transformers=transformers.__version__,
            torch_threads=torch.get_num_threads(),
            platform=jax.default_backend(),
        )


if __name__ == "__main__":
    main()
