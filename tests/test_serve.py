"""The command `serve`, and its predictions with the packaged network."""

import io
import json
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import diffseg_jax
from conftest import ROOT, called
from diffseg_jax import serve
from diffseg_jax.data.scenes import draw_scene
from diffseg_jax.server.listening import bound_socket
from serve_case import array_of, file_of, serving

IMAGES = [draw_scene(7, number, 96, 128)["image"] for number in range(4)]
SMALL = IMAGES[0][::2, ::2]  # shown at the same size, so it shares the program
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def segmenter():
    return diffseg_jax.load("scenes")


@pytest.fixture(scope="module")
def client(segmenter):
    with serving(segmenter) as client:
        yield client


def test_predictions_are_those_of_the_segmenter(segmenter, client):
    """To the last bit, of images that come at the same time."""

    def ask(image):
        body = client.post("/predict?format=probs", content=file_of(image), headers=PNG).content
        with np.load(io.BytesIO(body)) as arrays:
            return dict(arrays)

    images = [*IMAGES, SMALL]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(ask, images))
    for image, arrays in zip(images, found, strict=True):
        wanted = segmenter.predict(image)
        np.testing.assert_array_equal(arrays["labels"], wanted.labels[0])
        np.testing.assert_array_equal(arrays["probs"], wanted.probs[0].astype(np.float16))
        uncertainty = wanted.uncertainty[0].astype(np.float16)
        np.testing.assert_array_equal(arrays["uncertainty"], uncertainty)


def test_options_are_those_of_predict(segmenter, client):
    for query, options in {"flip=True": {"flip": True}, "seed=3": {"seed": 3}}.items():
        response = client.post(f"/predict?{query}", content=file_of(SMALL), headers=PNG)
        wanted = segmenter.predict(SMALL, **options)
        np.testing.assert_array_equal(array_of(response.content), wanted.labels[0])
        assert response.headers["x-uncertainty"] == f"{wanted.uncertainty.mean(dtype=float):.6f}"


def test_json_says_what_the_prediction_does(segmenter, client):
    content = client.post("/predict?format=json", content=file_of(SMALL), headers=PNG).json()
    wanted = segmenter.predict(SMALL)
    shares = {each["name"]: each["share"] for each in content["classes"]}
    assert shares == pytest.approx(wanted.class_shares())
    assert content["foreign"] == bool(wanted.foreign[0])
    assert content["familiarity"] == pytest.approx(wanted.familiarity[0])
    assert content["uncertainty"]["calibrated"] is True


def test_a_mistake_is_a_sentence_before_anything_is_loaded(monkeypatch):
    monkeypatch.delenv(serve.TOKEN, raising=False)
    with bound_socket("127.0.0.1", 0) as bound:
        bound.listen()
        taken = bound.getsockname()[1]
        for flags, words in (
            (["--host=0.0.0.0"], "a token is needed"),
            (["--token=short"], "8 or more"),
            ([f"--port={taken}"], f"port {taken} of 127.0.0.1 is taken"),
            (["--port=70000"], "--port is 70000"),
        ):
            done = called(serve.main, ["--checkpoint=nothing", *flags, "--compilation_cache="])
            assert done.code == 2 and words in done.err, done.err


def test_the_packages_that_it_needs_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("listening", "predict_server"):
        monkeypatch.delitem(sys.modules, f"diffseg_jax.server.{name}", raising=False)
        monkeypatch.delattr(f"diffseg_jax.server.{name}", raising=False)
    done = called(serve.main, ["--checkpoint=scenes"])
    assert done.code == 2 and "uvicorn is missing" in done.err and "[page]" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_finishes_what_is_in_flight(number, code):
    with bound_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
    program = [sys.executable, "-m", "diffseg_jax.serve", "--checkpoint=scenes", f"--port={port}"]
    program += ["--seconds=200"]
    process = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 200
        while process.stdout.readline() != b"ready\n":
            assert process.poll() is None and time.monotonic() < until
        assert json.load(urllib.request.urlopen(f"{url}/health"))["ready"] is True
        query = f"{url}/predict?steps=20"  # a program of its own, which takes seconds to compile
        asked = urllib.request.Request(query, file_of(SMALL), {"Content-Type": "image/png"})
        with ThreadPoolExecutor(1) as pool:
            response = pool.submit(urllib.request.urlopen, asked, timeout=200)
            time.sleep(1)
            assert not response.done()
            process.send_signal(number)
            assert array_of(response.result().read()).shape == SMALL.shape[:2]
        _, said = process.communicate(timeout=60)
        assert process.returncode == code and b"Traceback" not in said, said
    finally:
        process.kill()
