"""The notebook runs from top to bottom, and git holds it without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import XLA_FLAGS

ROOT = Path(__file__).parents[1]
FILE = ROOT / "launch/colab_quickstart.ipynb"
SHORT = "SIZES, IMAGES, TRAINING_STEPS = (3,), 4, 12"  # replaces the cell of parameters


@pytest.fixture
def notebook():
    return nbformat.read(FILE, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_it_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None, cell.source
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_it_runs_and_fine_tuning_on_ten_images_helps(notebook, tmp_path, monkeypatch):
    environment = {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path),
        "XLA_FLAGS": XLA_FLAGS,
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (parameters,) = [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", ())]
    parameters.source = SHORT
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
    shown = [
        o for cell in code_cells(notebook) for o in cell.outputs if "image/png" in o.get("data", {})
    ]
    assert len(shown) >= 8
    assert not re.search("(?i)warning|traceback", "".join(map(printed, code_cells(notebook))))
    last = printed(code_cells(notebook)[-1])
    before, after = map(float, re.findall(r"\d\.\d+", last))
    assert after > before + 0.05, last
