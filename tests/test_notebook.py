"""The notebook runs from top to bottom, and git holds it without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FILE = ROOT / "launch/colab_quickstart.ipynb"
# Replaces the cell of parameters.
SHORT = """LABELLED, MORE, SIZE, SCALES = 6, 14, (128, 96), (1.0,)
FOLDS, MEMBERS, SEED = 2, 1, 1"""


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


@pytest.mark.slow
def test_it_runs_and_more_labels_help(notebook, tmp_path, monkeypatch):
    environment = {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path),
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
    assert len(shown) == 5
    printed_by_all = "".join(map(printed, code_cells(notebook)))
    assert not re.search("(?i)warning|traceback", printed_by_all)
    assert re.search(r"held out in turn: mIoU \d+\.\d ± \d", printed_by_all)
    (found,) = re.findall(r"unseen images: (\S+) before, (\S+) after", printed_by_all)
    before, after = map(float, found)
    assert after > before + 3, found
    assert (tmp_path / "predictions.zip").stat().st_size > 10_000
