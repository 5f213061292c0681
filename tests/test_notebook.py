"""The tutorial: what is stored in it, and that it still runs."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "soft_weight_sharing.ipynb"


def outputs(cells):
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def test_it_is_stored_as_it_ran_and_is_small():
    assert NOTEBOOK.stat().st_size < 2**20
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))  # once, from top to bottom
    found = outputs(cells)
    kinds = [kind for output in found for kind in output.get("data", {})]
    assert kinds.count("image/png") == 4 and kinds.count("image/gif") == 1
    assert not [output for output in found if output["output_type"] == "error" or output.get("name") == "stderr"]
    texts = "".join("".join(output.get("text", [])) for output in found)
    assert "equal: True" in texts and "compression rate" in texts
    assert not re.search(r"(^|[\s'\"])/[a-z]+/", texts)  # no path of the machine it ran on


@pytest.mark.slow
def test_it_runs(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    texts = "".join("".join(output.get("text", [])) for output in outputs(notebook.cells))
    dense, quantised = ([float(n) for n in re.findall(rf"{name} (\d\.\d+)", texts)] for name in ("dense", "quantised"))
    assert len(dense) == len(quantised) == 2  # the run's network; one's own
    assert min(dense) > 0.9 and all(after > before - 0.03 for before, after in zip(dense, quantised, strict=True))
    assert "equal: True" in texts
