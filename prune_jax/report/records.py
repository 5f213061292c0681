"""The arrays that a method's `record` keeps: WORKDIR/records/<epoch>.npz, from epoch 0, and records/quantised.npz."""

import io
from pathlib import Path

import numpy as np

from prune_jax import files


def write_record(workdir, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes workdir/records/<name>.npz, whole or not at all. A resumed run writes an epoch's file again."""
    folder = Path(workdir) / "records"
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files.write_bytes(folder / f"{name}.npz", buffer.getvalue())


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def read_records(workdir) -> tuple[dict[int, dict[str, np.ndarray]], dict[str, np.ndarray] | None]:
    """Reads a run's records: ({epoch: its arrays}, the arrays of the quantised network or None)."""
    folder = Path(workdir) / "records"
    epochs = sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdigit())
    quantised = folder / "quantised.npz"
    by_epoch = {epoch: _read(folder / f"{epoch}.npz") for epoch in epochs}
    return by_epoch, _read(quantised) if quantised.is_file() else None
