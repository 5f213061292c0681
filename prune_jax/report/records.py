"""What a method's `record` keeps of each epoch: WORKDIR/records/<epoch>.npz, from 0, and records/quantised.npz."""

import io
from pathlib import Path

import numpy as np

from prune_jax import workdir as workdir_lib


def write_record(workdir, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes workdir/records/<name>.npz, whole or not at all; a resumed run writes an epoch's again."""
    folder = Path(workdir) / "records"
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    workdir_lib.write_bytes(folder / f"{name}.npz", buffer.getvalue())


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def read_records(workdir) -> tuple[dict[int, dict[str, np.ndarray]], dict[str, np.ndarray] | None]:
    """(epoch -> its record, the quantised network's record or None); ({}, None) where there are none."""
    folder = Path(workdir) / "records"
    epochs = sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdigit())
    quantised = folder / "quantised.npz"
    found = {epoch: _read(folder / f"{epoch}.npz") for epoch in epochs}
    return found, _read(quantised) if quantised.is_file() else None
