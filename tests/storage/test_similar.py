"""A path that does not exist is compared with those that do."""

from pathlib import Path

import pytest

from diffseg_jax.storage.similar import similar_path

pytestmark = pytest.mark.quick


def test_the_nearest_path_is_asked_for_and_no_other(tmp_path, monkeypatch):
    (tmp_path / "runs/street_a").mkdir(parents=True)
    (tmp_path / "runs/notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    for given, near in {
        "rums/street_a": "runs/street_a",
        f"{tmp_path}/runs/Street_A": f"{tmp_path}/runs/street_a",
        "../" + tmp_path.name + "/run/street_b": "../" + tmp_path.name + "/runs/street_a",
        "scens": "scenes",
        "SCENES": "scenes",
    }.items():
        assert similar_path(Path(given), ["scenes"]) == f' Did you mean "{near}"?'
    for given in ("runs", "runs/street_a", "photographs", "runs/street_a/0", "runs/a/b", "."):
        assert similar_path(Path(given), ["scenes"]) == ""
    assert similar_path(Path("runs/note.txt"), fits=Path.is_dir) == ""
