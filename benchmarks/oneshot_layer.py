"""Seconds that SparseGPT takes for one layer, beside its reference algorithm in torch, in one process, interleaved.

    python -m benchmarks.oneshot_layer [--size=1024] [--rounds=7] [--structure=unstructured]

Both get the same Hessian and weights, float32, and as many threads. The reference is the paper's code: an inverse by
two Cholesky factorisations, columns one by one in blocks of 128. Compilation is not counted.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.oneshot import hessian, sparsegpt
from prune_jax.oneshot.masks import Layout


def reference(weights, h, sparsity: float, pair: tuple[int, int] | None, block: int = 128, dampening: float = 0.01):
    """SparseGPT in torch: weights (outputs, inputs) and h (inputs, inputs) are tensors; returns the new weights."""
    import torch

    w, h, inputs = weights.clone(), h.clone(), weights.shape[1]
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    diagonal = torch.arange(inputs)
    h[diagonal, diagonal] += dampening * torch.mean(torch.diag(h))
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        own, kept, errors = (
            w[:, start:end].clone(),
            torch.zeros_like(w[:, start:end]),
            torch.zeros_like(w[:, start:end]),
        )
        square = inverse[start:end, start:end]
        if pair is None:
            scores = own**2 / torch.diag(square)[None] ** 2
            mask = scores <= torch.sort(scores.flatten())[0][int(scores.numel() * sparsity)]
        else:
            mask = torch.zeros_like(own, dtype=torch.bool)
        for i in range(end - start):
            if pair is not None and i % pair[1] == 0:
                scores = own[:, i : i + pair[1]] ** 2 / torch.diag(square)[None, i : i + pair[1]] ** 2
                mask.scatter_(1, i + torch.topk(scores, pair[1] - pair[0], dim=1, largest=False)[1], True)
            new = own[:, i].clone()
            new[mask[:, i]] = 0
            error = (own[:, i] - new) / square[i, i]
            own[:, i:] -= error[:, None] @ square[i : i + 1, i:]
            kept[:, i], errors[:, i] = new, error
        w[:, start:end] = kept
        w[:, end:] -= errors @ inverse[start:end, end:]
    return w


def main(argv=None) -> dict[str, float]:
    """Prints the medians, and returns them with the relative errors of both."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--structure", default="unstructured", choices=("unstructured", "2:4"))
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4 * args.size, args.size)) @ rng.normal(size=(args.size, args.size)) / np.sqrt(args.size)
    h, w = (x.T @ x / len(x)).astype(np.float32), rng.normal(size=(args.size, args.size)).astype(np.float32)
    pair = None if args.structure == "unstructured" else (2, 4)
    layout = Layout("unstructured", 0.5) if pair is None else Layout("n:m", 0.5, pair)
    ours = jax.jit(lambda w, h: sparsegpt.sweep(w, hessian.factors(h, 0.01), layout)[0])
    given, tensors = (jnp.asarray(w.T), jnp.asarray(h)), (torch.from_numpy(w), torch.from_numpy(h))
    calls = {
        "prune_jax": lambda: np.asarray(ours(*given)),
        "torch": lambda: reference(*tensors, 0.5, pair).numpy().T,
    }
    results = {name: call() for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    found, factors = {}, hessian.factors(given[1], 0.01)
    for name, its in times.items():
        found[f"{name} seconds"] = statistics.median(its)
        found[f"{name} error"] = float(hessian.error(factors, given[0], jnp.asarray(results[name])))
        median, error = found[f"{name} seconds"], found[f"{name} error"]
        print(f"{name:<10} {median:.3f} s ({min(its):.3f} to {max(its):.3f}), error {error:.5f}")
    return found


if __name__ == "__main__":
    main()
