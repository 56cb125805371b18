"""The command `annotate`: its flags, its folder, and how it starts and ends."""

import os
import signal
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient

import diffseg_jax
from diffseg_jax import annotate
from diffseg_jax.data.scenes import draw_scene
from diffseg_jax.errors import UserError
from diffseg_jax.server import page_server
from diffseg_jax.server.drawn_scenes import draw_scenes
from diffseg_jax.server.notebook import open_in_notebook
from diffseg_jax.server.page_server import PageServer, beside, open_browser
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


def test_scenes_have_their_classes_after_a_start_that_failed(photos, monkeypatch):
    monkeypatch.setattr("diffseg_jax.server.drawn_scenes.COUNT", 2)
    with pytest.raises(UserError, match="cannot listen"):
        PageServer(["scenes"], host="no.such.address")
    with PageServer(["scenes"]) as page:
        assert len(page.store.images) == 2 and len(page.store.classes.names) == 9


def test_a_kill_while_scenes_are_drawn_leaves_no_folder_that_looks_whole(photos, monkeypatch):
    monkeypatch.setattr("diffseg_jax.server.drawn_scenes.COUNT", 3)
    drawn = []

    def draw_two(*arguments):
        drawn.append(arguments)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw_scene(*arguments)

    monkeypatch.setattr("diffseg_jax.server.drawn_scenes.draw_scene", draw_two)
    with pytest.raises(KeyboardInterrupt):
        draw_scenes("scenes")
    assert not Path("scenes").exists()
    Path(".scenes.1").mkdir()  # of a process that could not clear away
    assert draw_scenes("scenes") and len(list(Path("scenes").iterdir())) == 3
    assert not list(Path().glob(".scenes*"))


def test_a_browser_is_opened_without_a_token_on_its_command_line(photos, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    with PageServer(["photos"], "sky,road") as page:
        open_browser(page.url, page.folder)
        (address,) = opened
        assert page.access.token not in address
        file = Path(address.removeprefix("file://"))
        assert file.stat().st_mode & 0o777 == 0o600
        assert f'content="0;url={page.url}"' in file.read_text()


def test_a_frame_of_colab_has_the_height_that_was_given(photos, monkeypatch):
    colab, shown = ModuleType("google.colab"), []
    colab.output = SimpleNamespace(
        serve_kernel_port_as_iframe=lambda port, **options: shown.append((port, options))
    )
    colab.__spec__ = ModuleSpec("google.colab", None)
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    page = open_in_notebook("photos", ["sky", "road"], height=333)
    try:
        assert page._repr_html_() == ""
        access = page.server.access
        assert shown == [(access.port, {"path": f"/{access.token}/", "height": 333})]
    finally:
        page.stop()


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
    (Path(page.folder) / "address.json").write_text("{}")  # as notebooks once wrote it
    again = open_in_notebook("photos")  # the folder is free again
    again.stop()
    assert again.server.access.token != token  # that of before is among the outputs of the notebook
    assert not (Path(again.folder) / "address.json").exists()
    with pytest.raises(UserError, match="must be paths"):
        open_in_notebook(np.zeros((2, 2, 3), np.uint8))


def test_the_package_offers_the_function_of_notebooks():
    """Which has the name of the command, so the module is called."""
    with pytest.raises(UserError, match="must be paths"):
        diffseg_jax.annotate(3.0)
    assert diffseg_jax.annotate is annotate and "annotate" in diffseg_jax.__all__


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_stop_ends_the_command_with_a_sentence(tmp_path, loop):
    """With features of colours, which compile fast, and an event stream that is open."""
    write_images(tmp_path / "photos", [(12, 16)])
    if loop == "asyncio":  # uvicorn takes it where uvloop is missing
        (tmp_path / "uvloop.py").write_text("raise ImportError")
    process = subprocess.Popen(
        [sys.executable, "-m", "diffseg_jax.annotate", "--images=photos", "--classes=sky,road",
         "--features=colour", "--open=False"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    lines = iter(process.stdout.readline, "")  # those of progress too, on a busy machine
    address = next((line for line in lines if line.startswith("open http://127.0.0.1:")), "")
    host, _, rest = address.split()[1].removeprefix("http://").partition("/?token=")
    assert rest, address
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
