"""The command export --format=onnx, and the programs of its guide that use what it writes."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import diffseg_jax
from bev_case import bev_segmenter, street
from conftest import ROOT, called
from diffseg_jax import export
from diffseg_jax.data.rig_files import write_rig
from diffseg_jax.data.scenes import draw_scene
from diffseg_jax.inference.bev_output import predict_rigs

GUIDE = (ROOT / ".docs" / "exporting.md").read_text()
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
WEB = os.environ.get("ONNXRUNTIME_WEB", "")  # node_modules/onnxruntime-web/dist
CDN = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist"
CPP = os.environ.get("ONNXRUNTIME_CPP", "")  # with the folders include and lib of a release
WITHOUT = "import sys\nfor name in ('diffseg_jax', 'jax', 'onnx'): sys.modules[name] = None\n"


def blocks(language):
    """The blocks of the guide in a language."""
    return re.findall(rf"(?s)^```{language}\n(.*?)^```", GUIDE, re.MULTILINE)


def command_for(checkpoint, folder):
    """The flags of the command of the guide that exports a checkpoint, into a folder."""
    lines = "".join(blocks("bash")).splitlines()
    command = next(line for line in lines if f"export --checkpoint={checkpoint} " in line)
    return [flag.replace("=web/", f"={folder}/web/") for flag in command.split()[3:]]


def printed(program, folder):
    """What a Python program of the guide prints where neither jax nor this package is found."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + program], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder in which the command of the guide was run, and a photograph."""
    folder = tmp_path_factory.mktemp("site")
    done = called(export.main, command_for("scenes", folder))
    assert done.code == 0, done.err
    assert "onnxruntime.InferenceSession" in done.out and "pip install onnxruntime" in done.out
    image = draw_scene(3, 0, 96, 128)["image"]
    Image.fromarray(image).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def expected(site):
    """What the packaged model predicts of the photograph."""
    return diffseg_jax.load("scenes").predict(site / "photo.png")


def test_the_packaged_model_predicts_the_same_in_onnx(site, expected):
    session = onnxruntime.InferenceSession(site / "web" / "scenes" / "model.onnx")
    image = np.asarray(Image.open(site / "photo.png"))
    labels, probs, uncertainty = session.run(None, {"images": image[None]})
    np.testing.assert_allclose(probs, expected.probs, atol=1e-4)
    best = np.sort(expected.probs, -1)
    clear = best[..., -1] - best[..., -2] > 1e-3
    np.testing.assert_array_equal(labels[clear], expected.labels[clear])
    assert expected.calibrated
    np.testing.assert_allclose(uncertainty[clear], expected.uncertainty[clear], atol=1e-3)


def test_the_python_of_the_guide_runs_without_the_package(site, expected):
    of_labels, _ = blocks("python")  # the other is of rigs
    shares = dict(line.rsplit(maxsplit=1) for line in printed(of_labels, site).splitlines())
    assert list(shares) == list(expected.classes)
    for index, share in enumerate(shares.values()):
        assert abs(float(share.strip("%")) / 100 - (expected.labels == index).mean()) < 0.01


def test_the_python_of_the_guide_for_rigs_runs_without_the_package(tmp_path, monkeypatch):
    """On a small network and the rig of a command `predict`, exported as the guide has it."""
    segmenter = bev_segmenter("tiny")
    *_, size, form = flags = command_for("runs/ddp_bev", tmp_path)
    assert len(flags) == 4 and (size, form) == ("--size=48,72", "--format=onnx")
    monkeypatch.setattr(export, "load", lambda *_, **__: segmenter)
    flags[2] = "--size=32,48"  # what the small network sees
    assert called(export.main, flags).code == 0
    file = write_rig(street("street", 3, (96, 144)), tmp_path / "rigs")
    _, of_rigs = blocks("python")
    printed(of_rigs + "np.savez('found.npz', probs=probs, uncertainty=uncertainty)", tmp_path)
    found, expected = np.load(tmp_path / "found.npz"), predict_rigs(segmenter, str(file))
    assert found["probs"].shape == (1, 6, 20, 20)
    np.testing.assert_allclose(found["probs"], expected.probs, atol=1e-4)
    np.testing.assert_allclose(found["uncertainty"], expected.uncertainty, atol=1e-4)


@pytest.mark.skipif(not (BROWSER and WEB), reason="needs Chromium, and ONNXRUNTIME_WEB")
def test_the_page_of_the_guide_paints_the_labels(site, expected):
    from playwright.sync_api import sync_playwright

    folder = site / "web" / "scenes"
    page = blocks("html")[0].replace(CDN, "./ort")
    page = page.replace("</script>", "window.finished = true;\n</script>")
    (folder / "index.html").write_text("<!doctype html>\n" + page)
    shutil.copy(site / "photo.png", folder)
    if not (folder / "ort").exists():
        (folder / "ort").symlink_to(Path(WEB).resolve())
    handler = functools.partial(Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            tab = browser.new_page()
            tab.goto(f"http://127.0.0.1:{server.server_port}/index.html")
            tab.wait_for_function("() => window.finished", timeout=200_000)
            read = "() => [...painted.getContext('2d').getImageData(0, 0, 128, 96).data]"
            shown = np.reshape(tab.evaluate(read), (96, 128, 4))[..., :3]
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
    palette = np.array(json.loads((folder / "model.json").read_text())["palette"])
    assert (shown == palette[expected.labels[0]]).all(-1).mean() > 0.999


CPP_PROGRAM = """
#include <cstdio>
#include <vector>
{0}
int main() {{
  const int64_t height = {1}, width = {2};
  std::vector<uint8_t> rgb(3 * height * width);
  if (std::fread(rgb.data(), 1, rgb.size(), stdin) != rgb.size()) return 1;
{3}
  std::fwrite(labels, sizeof(int32_t), height * width, stdout);
}}
"""


@pytest.mark.skipif(not (shutil.which("g++") and CPP), reason="needs g++, and ONNXRUNTIME_CPP")
def test_the_cpp_of_the_guide_finds_the_labels(site, expected):
    folder = site / "web" / "scenes"
    include, _, lines = blocks("cpp")[0].partition("\n")
    image = np.asarray(Image.open(site / "photo.png"))
    source = CPP_PROGRAM.format(include, *image.shape[:2], lines)
    (folder / "predict.cpp").write_text(source)
    command = next(line for line in GUIDE.splitlines() if line.startswith("g++"))
    command = command.replace("$ONNXRUNTIME_CPP", str(Path(CPP).resolve()))
    subprocess.run(command.split(), cwd=folder, check=True, timeout=100)
    done = subprocess.run([folder / "predict"], input=image.tobytes(), cwd=folder,
                          capture_output=True, timeout=100)  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels = np.frombuffer(done.stdout, np.int32).reshape(image.shape[:2])
    assert (labels == expected.labels[0]).mean() > 0.999


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that logs nothing."""

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--format=onxn"], 'unknown format "onxn". Known: onnx, stablehlo. Did you mean "onnx"?'),
        (["--format=onnx", "--platforms=cpu"], "platforms is cpu, but a file of the format onnx"),
        (["--format=onnx", "--size=0,4"], "size"),
        (["--size=96"], "--size is 96, but it must be height,width, such as 96,128 or 96x128"),
        (["--format=onnx", "--output=."], ". exists already. Give another --output."),
    ],
)
def test_mistakes_end_with_one_sentence_before_anything_is_loaded(flags, sentence):
    done = called(export.main, ["--checkpoint=scenes", "--output=new", "--size=96,128", *flags])
    assert done.code == 2 and sentence in done.err and done.err.count("\n") == 1, done.err
