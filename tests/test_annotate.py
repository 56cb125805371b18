"""The command `annotate`: its flags, its folder, and how it starts and ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

import diffseg_jax
from diffseg_jax import annotate
from diffseg_jax.errors import UserError
from diffseg_jax.server import page_server
from diffseg_jax.server.drawn_scenes import draw_scenes
from diffseg_jax.server.notebook import open_in_notebook
from diffseg_jax.server.page_server import PageServer, beside
from page_case import MeanColours, write_images

ROOT = Path(__file__).parents[1]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The folder `photos` in the present one, and an engine of numpy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        page_server, "StrokeFit", lambda source, labels, folder: MeanColours(labels)
    )
    return write_images(Path("photos"))


def run(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        annotate.main([*arguments, "--open=False", "--compilation_cache="])
    return ended.value.code


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--images=photos"], "the classes are unknown"),
        (["--images=photos", "--classes=a,a"], "there are two classes a"),
        (["--images=photos", "--classes=no.json"], "there is no no.json"),
        (["--images=nowhere", "--classes=a,b"], "there is no image or folder nowhere"),
        (["--images=photos", "--classes=a,b", "--output=photos/x"], "lies in --images=photos"),
        (["--images=photos", "--classes=a", "--features=x", "--checkpoint=y"], "Give one of them"),
        (["--images=photos", "--classes=a,b", "--host=no.such.address"], "cannot listen"),
        (["--images=photos", "--classes=a,b", "--output=gs://b/x"], "to this machine only"),
    ],
)
def test_mistakes_are_one_sentence(photos, capsys, flags, said):
    assert run(*flags) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_one_folder_has_one_page(photos):
    with PageServer(["photos"], "sky,road"), pytest.raises(UserError, match="is in use: process"):
        PageServer(["photos"])
    with PageServer(["photos"]) as page:  # the lock is gone, and the classes are those of before
        assert page.store.classes.names == ("sky", "road")


def test_the_output_is_beside_the_images(photos):
    assert str(beside(["photos"])) == str(beside(["photos/photo_0.png"])) == "photos_annotated"
    assert beside([str(Path.cwd())]) == Path.cwd().parent / f"{Path.cwd().name}_annotated"


def test_other_machines_are_let_in_with_a_warning(photos):
    with PageServer(["photos"], "sky,road", host="0.0.0.0") as page:
        assert any("warning: --host=0.0.0.0" in line for line in page.described())
        assert page.url.startswith("http://127.0.0.1:")
    with PageServer(["photos"]) as page:
        assert not any("warning" in line for line in page.described())


def test_scenes_are_drawn_once_with_their_classes(photos, monkeypatch):
    monkeypatch.setattr("diffseg_jax.server.drawn_scenes.COUNT", 2)
    with PageServer(["scenes"]) as page:
        assert len(page.store.images) == 2 and len(page.store.classes.names) == 9
    assert not draw_scenes("scenes")
    with PageServer(["scenes"]) as page:
        assert len(page.store.classes.names) == 9


def test_a_notebook_shows_the_page_in_a_frame(photos):
    page = open_in_notebook("photos", ["sky", "road"])
    try:
        assert page.url in page._repr_html_() and "<iframe" in page._repr_html_()
        with pytest.raises(UserError, match="no fit yet"):
            page.segmenter  # noqa: B018
        with TestClient(page.server.server.config.app, base_url="http://any") as client:
            token = page.server.access.token
            assert client.get(f"/{token}/api/project").status_code == 200
            assert client.get("/api/project").status_code == 403
    finally:
        page.stop()
    open_in_notebook("photos").stop()  # the folder is free again
    with pytest.raises(UserError, match="must be paths"):
        open_in_notebook(np.zeros((2, 2, 3), np.uint8))


def test_the_package_offers_the_function_of_notebooks():
    """Which has the name of the command, so the module is called."""
    with pytest.raises(UserError, match="must be paths"):
        diffseg_jax.annotate(3.0)
    assert diffseg_jax.annotate is annotate and "annotate" in diffseg_jax.__all__


def test_a_stop_ends_the_command_with_a_sentence(tmp_path):
    """With features of colours, which compile fast, and an event stream that is open."""
    write_images(tmp_path / "photos", [(12, 16)])
    process = subprocess.Popen(
        [sys.executable, "-m", "diffseg_jax.annotate", "--images=photos", "--classes=sky,road",
         "--features=colour", "--open=False"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines[1].startswith("open http://127.0.0.1:") and "?token=" in lines[1], lines
    host, _, rest = lines[1].split()[1].removeprefix("http://").partition("/?token=")
    listen_to_events(host, rest)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and annotate.SAVED in err, err
    assert "Traceback" not in err and "error" not in err.lower(), err
    assert not (tmp_path / "photos_annotated" / ".annotate.lock").exists()


def listen_to_events(host, token):
    """Opens the events and leaves them open."""
    import http.client

    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", "/api/events", headers={"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    assert response.status == 200 and response.readline().startswith(b"event: state")
