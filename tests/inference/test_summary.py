"""summary.json: which images are finished, and files of others that are not replaced."""

import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.inference.frames import Frame
from diffseg_jax.inference.summary import Summary

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("number", [None, 3])
def test_files_of_another_image_are_not_replaced(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    summary = Summary(tmp_path / "out", {"version": "1"}, outputs=lambda name: [])
    source = lambda path: str(path) if number is None else Frame(str(path), number)
    for day in ("day1", "day2"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "a.gif").write_bytes(b"an image")
    (tmp_path / "link").symlink_to("day1")
    summary.add("a", source("day1/a.gif"), {})
    monkeypatch.setenv("HOME", str(tmp_path))
    for same in ("day1/a.gif", "link/a.gif", "~/day1/a.gif", tmp_path / "day1/a.gif"):
        assert summary.is_done("a", source(same))
    with pytest.raises(UserError, match=r"of day1/a.gif\S* as a, which those of day2.*out_2\.$"):
        summary.is_done("a", source("day2/a.gif"))
    both = [("a", source("day2/a.gif")), ("b", source("link/a.gif"))]  # new names, nothing is lost
    assert summary.remaining(both) == both and not summary.remaining([("a", source("link/a.gif"))])
    (tmp_path / "day1/a.gif").unlink()
    assert not summary.is_done("a", source("day2/a.gif"))
