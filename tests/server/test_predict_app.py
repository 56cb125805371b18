"""The prediction server, asked over HTTP, with a network whose labels are known."""

import asyncio
import base64
import gc
import io
import itertools
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx2
import numpy as np
import pytest
from PIL import Image

from diffseg_jax.errors import UserError
from diffseg_jax.inference.views import Protocol, View
from diffseg_jax.server.listening import bound_socket, make_server
from diffseg_jax.server.predict_app import Limits, PredictApp
from diffseg_jax.server.predict_formats import class_run_lengths, compact
from diffseg_jax.server.predict_server import require_token
from diffseg_jax.server.security import Access, Guarded
from diffseg_jax.server.served_network import MAX_PASSES, Kind, ServedNetwork
from mutate import damaged
from serve_case import LABELS, ColourSegmenter, array_of, colour_maps, file_of, serving

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (9, 14, 3), np.uint8)
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def client():
    with serving(ColourSegmenter()) as client:
        yield client


def ask(client, query="", image=IMAGE, **options):
    return client.post(f"/predict{query}", content=file_of(image), headers=PNG, **options)


def error_of(response):
    """The sentence of an error, which is all that its body holds."""
    content = response.json()
    assert set(content) == {"error"} and response.headers["content-type"] == "application/json"
    sentence = content["error"]
    assert sentence.endswith((".", "?", "photo.jpg")) and "\n" not in sentence, sentence
    return sentence


# --- predictions ----------------------------------------------------------------------------------


def test_a_label_map_is_a_grey_png_of_ids(client):
    response = ask(client)
    assert response.status_code == 200 and response.headers["content-type"] == "image/png"
    found = Image.open(io.BytesIO(response.content))
    assert found.mode == "L"
    np.testing.assert_array_equal(np.asarray(found), colour_maps(IMAGE).labels)
    assert response.headers["x-size"] == "9x14"
    mean = float(response.headers["x-uncertainty"])
    assert mean == pytest.approx(IMAGE[..., 1].mean() / 255, abs=1e-6)


def test_a_form_is_read_as_the_body_alone_is(client):
    content = file_of(IMAGE)
    for name in ("a.png", "café.png", "../../etc/passwd"):
        response = client.post("/predict", files={"image": (name, content, "image/png")})
        assert response.content == ask(client).content


def test_images_are_turned_upright(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    response = client.post("/predict", content=file_of(IMAGE, exif=exif), headers=PNG)
    assert array_of(response.content).shape == (14, 9)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 5)])
def test_run_lengths_give_the_label_map_back(client, shape):
    image = RNG.integers(0, 256, (*shape, 3), np.uint8)
    content = ask(client, "?format=json&uncertainty=True", image).json()
    labels = np.full(shape, -1)
    for each in content["labels"]:
        values = [n % 2 for n, count in enumerate(each["counts"]) for _ in range(count)]
        inside = np.array(values, bool).reshape(shape, order="F")  # columns first, as COCO
        assert each["size"] == list(shape) and (labels[inside] == -1).all()
        labels[inside] = each["id"]
    wanted = colour_maps(image)
    np.testing.assert_array_equal(labels, wanted.labels)
    for each in content["classes"]:
        assert each["pixels"] == (labels == each["id"]).sum()
        assert each["name"] == LABELS.names[each["id"]]
    assert sum(each["share"] for each in content["classes"]) == pytest.approx(1)
    uncertainty = content["uncertainty"]
    assert uncertainty["mean"] == pytest.approx(wanted.uncertainty.mean())
    np.testing.assert_array_equal(array_of(base64.b64decode(uncertainty["png"])), image[..., 1])


def test_a_class_that_fills_the_image_has_no_pixels_outside():
    (found,) = class_run_lengths(np.full((2, 3), 5))
    assert found == {"id": 5, "size": [2, 3], "counts": [0, 6]}


def test_probabilities_come_as_arrays(client):
    response = ask(client, "?format=probs")
    with np.load(io.BytesIO(response.content), allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays}
    wanted = colour_maps(IMAGE)
    np.testing.assert_array_equal(found["labels"], wanted.labels)
    np.testing.assert_array_equal(found["probs"], wanted.probs)
    np.testing.assert_allclose(found["uncertainty"], wanted.uncertainty, atol=1e-3)
    assert [found[name].dtype for name in ("labels", "probs")] == [np.uint8, np.float16]


@pytest.mark.parametrize("classes, dtype", [(256, np.uint8), (257, np.uint16)])
def test_ids_take_two_bytes_where_they_need_them(classes, dtype):
    class Few:
        pass

    Few.classes = ("",) * classes
    found = compact(np.array([[0, 255]]), Few)
    assert found.dtype == dtype and found.tolist() == [[0, 255]]


def test_concurrent_requests_share_batches_and_get_their_own_labels():
    segmenter = ColourSegmenter()
    with serving(segmenter, limits=Limits(wait=0.1)) as client:
        images = [RNG.integers(0, 256, (9, 14, 3), np.uint8) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(lambda image: ask(client, "", image), images))
    for image, response in zip(images, responses, strict=True):
        np.testing.assert_array_equal(array_of(response.content), colour_maps(image).labels)
    assert sum(segmenter.batches[1:]) == 8 and max(segmenter.batches) > 1
    assert max(segmenter.batches) <= segmenter.batch_size


def test_one_size_too_many_drops_all_programs():
    segmenter = ColourSegmenter()
    with serving(segmenter, most_sizes=3) as client:  # 8x8 of the first prediction is one of them
        for height, forgotten in ((16, 0), (20, 0), (19, 0), (16, 0), (24, 1), (8, 1), (28, 1)):
            ask(client, "", IMAGE[:1].repeat(height, 0)[:, :8])
            assert segmenter.forgotten == forgotten, height


def test_windows_share_a_program_whatever_the_size_of_the_image(monkeypatch):
    segmenter, windows = ColourSegmenter(), Protocol(View.SLIDE, (8, 8), (8, 8))
    monkeypatch.setattr(segmenter, "protocol_of_size", lambda options, size: windows, False)
    network = ServedNetwork(segmenter, most_sizes=1)
    for height in (16, 20, 24):
        network.predict(Kind((height, 8), network.options()), [])
    assert segmenter.forgotten == 0


# --- about the server -----------------------------------------------------------------------------


def test_the_server_says_what_it_is(client):
    content = client.get("/metadata").json()
    assert [each["name"] for each in content["classes"]] == list(LABELS.names)
    assert content["classes"][1]["colour"] == [128, 64, 128]
    assert content["system"] == "ddp" and content["step"] == 7
    assert content["limits"]["pixels"] == 2**24 and content["trained_size"] is None
    assert client.get("/health").json() == {"status": "ok", "ready": True, "waiting": 0}
    usage = client.get("/")
    assert "http://127.0.0.1:8000/predict" in usage.text
    assert usage.headers["content-type"].startswith("text/plain")
    assert client.head("/health").status_code == 200


def test_it_is_not_ready_before_its_first_prediction():
    segmenter = ColourSegmenter()
    segmenter.go.clear()
    app = PredictApp(ServedNetwork(segmenter), Limits())
    health = lambda: asyncio.run(app._health(None)).body
    assert segmenter.begun.wait(20) and b'"starting", "ready": false' in health()
    segmenter.go.set()
    app.warm.result(20)
    assert b'"ok", "ready": true' in health()
    app.close(20)


# --- what is refused ------------------------------------------------------------------------------

BIG = file_of(np.zeros((60, 60, 3), np.uint8))
LIMITS = Limits(pixels=3000, bytes=20_000, probs=300)


@pytest.fixture(scope="module")
def small():
    with serving(ColourSegmenter(), limits=LIMITS) as client:
        yield client


MISTAKES = [  # query, body, Content-Type, status, words
    ("", b"no image", "image/png", 400, "not a complete image"),
    ("", file_of(IMAGE)[:-30], "image/png", 400, "cannot read the image"),
    ("", b"", "image/png", 400, "there is no image"),
    ("", file_of(IMAGE), "text/plain", 415, "Content-Type is text/plain"),
    ("", file_of(IMAGE), "", 415, "there is no Content-Type"),
    ("", b"--x--", "multipart/form-data", 400, "Missing boundary"),
    ("", b"--x--\r\n", "multipart/form-data; boundary=x", 400, "holds nothing"),
    ("", bytes(20_001), "image/png", 413, "20,000 bytes"),
    ("", BIG, "image/png", 413, "60x60, 3,600 pixels, but this server takes 3,000"),
    ("?format=probs", file_of(IMAGE), "image/png", 422, "at most 100 pixels at 3 classes"),
    ("?scales=4", file_of(np.zeros((20, 20, 3), np.uint8)), "image/png", 422, "6,400 pixels"),
    ("?step=3", b"", "", 422, 'unknown parameter "step".*mean "steps"'),
    ("?steps=3&steps=4", b"", "", 422, "steps is given twice"),
    ("?steps=x", b"", "", 422, "steps is x, but it must be a whole number"),
    ("?steps=0", b"", "", 422, "steps is 0, but must be .* from 1 to 1000"),
    ("?flip=perhaps", b"", "", 422, "flip is perhaps, but it must be True or False"),
    ("?scales=1,nan", b"", "", 422, "takes scales from 0.25 to 4"),
    ("?scales=100", b"", "", 422, "takes scales from 0.25 to 4"),
    ("?steps=50&samples=5", b"", "", 422, f"250 passes .* {MAX_PASSES}"),
    ("?format=tiff", b"", "", 422, 'unknown format "tiff". Known: json, png, probs'),
    ("?uncertainty=True", b"", "", 422, "format is png. Try format=json"),
    ("?seed=" + "9" * 6000, b"", "", 422, "more than 1,000 characters"),
    ("?steps=13", file_of(IMAGE), "image/png", 422, "13 is not allowed"),  # of the network
]  # fmt: skip


@pytest.mark.parametrize(
    "query, content, kind, status, words", MISTAKES, ids=[words for *_, words in MISTAKES]
)
def test_mistakes_get_a_sentence(small, query, content, kind, status, words):
    headers = {"content-type": kind} if kind else {}
    response = small.post(f"/predict{query}", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert re.search(words, error_of(response)), response.text


def test_a_form_takes_one_image_and_nothing_else(small):
    file = ("a.png", file_of(IMAGE), "image/png")
    for form, words in (
        ({"files": {"picture": file}}, "must hold a file named image"),
        ({"files": [("image", file), ("image", file)]}, "one file"),
        ({"files": {"image": file}, "data": {"steps": "3"}}, "options go into the address"),
    ):
        response = small.post("/predict", **form)
        assert response.status_code == 400 and words in error_of(response)


def test_other_addresses_and_methods_are_refused(small):
    assert "no such address" in error_of(small.get("/predict/"))
    assert small.get("/nothing").status_code == 404
    response = small.get("/predict")
    assert response.status_code == 405 and "takes no GET" in error_of(response)
    assert response.headers["allow"] == "POST"
    assert small.post("/health").status_code == small.delete("/predict").status_code == 405


def test_a_fault_of_the_program_is_not_shown(small, capsys):
    response = ask(small, "?steps=14")
    assert response.status_code == 500 and error_of(response) == "the server failed: ValueError."
    assert "a fault in the program" in capsys.readouterr().err
    assert ask(small).status_code == 200


def test_a_token_is_needed_where_there_is_one():
    with serving(ColourSegmenter(), token="abcdefgh") as client:
        for headers in ({}, {"authorization": "Bearer abcdefgi"}):
            response = client.get("/metadata", headers=headers)
            assert response.status_code == 403 and "token" in error_of(response)
            assert ask(client).status_code == 403
        client.headers["authorization"] = "Bearer abcdefgh"
        assert ask(client).status_code == 200
        assert "Authorization: Bearer TOKEN" in client.get("/").text


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example:8000"}, {"origin": "http://evil.example"}]
)
def test_other_sites_cannot_ask(client, headers):
    response = client.post("/predict", content=file_of(IMAGE), headers=PNG | headers)
    assert response.status_code == 403 and "evil.example" in error_of(response)


@pytest.mark.parametrize(
    "host, token, words",
    [
        ("0.0.0.0", "", "--host=0.0.0.0 lets other machines ask.*--token="),
        ("127.0.0.1", "short", "8 or more"),
        ("127.0.0.1", "with spaces", "without spaces"),
    ],
)
def test_a_token_is_required_of_hosts_that_others_reach(host, token, words):
    with pytest.raises(UserError, match=words):
        require_token(host, token)
    require_token("127.0.0.1", "")
    require_token("0.0.0.0", "abcdefgh")


# --- load -----------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_again():
    segmenter = ColourSegmenter()
    with serving(segmenter, limits=Limits(requests=2, wait=0)) as client:
        segmenter.go.clear()
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(ask, client) for _ in range(2)]
            while client.app_of_server.busy < 2:
                time.sleep(0.001)
            refused = ask(client)
            segmenter.go.set()
            assert [each.result(20).status_code for each in waiting] == [200, 200]
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert "2 requests are waiting already" in error_of(refused)
        assert ask(client).status_code == 200 and client.app_of_server.busy == 0


def test_the_memory_of_a_request_is_free_when_it_is_done():
    """Without waiting for Python's search for cycles, which is rare in a large process."""
    segmenter = ColourSegmenter()
    with serving(segmenter) as client:
        gc.disable()
        try:
            for format in ("png", "json", "probs"):
                assert ask(client, f"?format={format}").status_code == 200
            until = time.monotonic() + 20
            while any(each() is not None for each in segmenter.seen[1:]):
                assert time.monotonic() < until
                time.sleep(0.001)
        finally:
            gc.enable()


def test_a_prediction_that_takes_too_long_is_given_up():
    segmenter = ColourSegmenter()
    with serving(segmenter, limits=Limits(seconds=0.05, wait=0)) as client:
        segmenter.go.clear()
        response = ask(client)
        assert response.status_code == 503 and "within 0.05 seconds" in error_of(response)
        assert "retry-after" in response.headers
        segmenter.go.set()


async def exchange(app, messages, content_type=b"image/png"):
    """The messages that an application sends for a POST; `messages` are those of the client."""
    sent, left = [], iter(messages)
    scope = {
        "type": "http", "method": "POST", "path": "/predict", "query_string": b"", "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"content-type", content_type)],
    }  # fmt: skip

    async def receive():
        message = next(left, None)
        if callable(message):
            message = await asyncio.to_thread(message)
        return message if message else await asyncio.Future()

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


def test_a_client_that_is_gone_costs_no_batch():
    segmenter = ColourSegmenter()
    app = PredictApp(ServedNetwork(segmenter), Limits(wait=0))
    guarded = Guarded(app.routes, Access("", "127.0.0.1", 8000))
    app.warm.result(20)
    segmenter.go.clear()
    segmenter.begun.clear()
    body = {"type": "http.request", "body": file_of(IMAGE)}

    def leave():
        while not len(app.batches):
            time.sleep(0.001)
        return {"type": "http.disconnect"}

    async def two():
        stays = asyncio.ensure_future(exchange(guarded, [body]))
        await asyncio.to_thread(segmenter.begun.wait, 20)
        await asyncio.wait_for(exchange(guarded, [body, leave]), 20)
        left = len(app.batches)
        segmenter.go.set()
        return left, (await stays)[0]["status"]

    assert asyncio.run(two()) == (0, 200)
    app.close(20)
    assert segmenter.batches == [1, 1] and app.busy == 0  # the first prediction, and the one


def test_a_body_that_does_not_arrive_is_given_up():
    app = PredictApp(ServedNetwork(ColourSegmenter()), Limits(seconds=0.05))
    guarded = Guarded(app.routes, Access("", "127.0.0.1", 8000))
    part = {"type": "http.request", "body": b"half", "more_body": True}
    assert asyncio.run(exchange(guarded, [part]))[0]["status"] == 408
    app.close(20)
    assert app.busy == 0


def test_a_server_that_stops_finishes_what_is_in_flight():
    segmenter = ColourSegmenter()
    app = PredictApp(ServedNetwork(segmenter), Limits())
    app.warm.result(20)
    with bound_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        server = make_server(Guarded(app.routes, Access("", "127.0.0.1", port)), 20)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        segmenter.go.clear()
        segmenter.begun.clear()
        url, content = f"http://127.0.0.1:{port}/predict", file_of(IMAGE)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx2.post, url, content=content, headers=PNG)
            assert segmenter.begun.wait(20)
            server.should_exit = True
            time.sleep(0.2)
            segmenter.go.set()
            response = asked.result(20)
        thread.join(20)
    np.testing.assert_array_equal(array_of(response.content), colour_maps(IMAGE).labels)
    assert not thread.is_alive()
    app.close(20)


def test_a_port_that_is_taken_is_named():
    with bound_socket("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is taken. Try --port="):
            bound_socket("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen on 203.0.113.7"):
        bound_socket("203.0.113.7", 0)


# --- mutated requests -----------------------------------------------------------------------------


def form_of(content):
    start = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return start + content + b"\r\n--x--\r\n"


def test_mutated_requests_get_a_response_and_no_traceback(client, capsys):
    """300 requests of damaged images, forms, queries and headers."""
    form = b"multipart/form-data; boundary=x"
    files = [file_of(IMAGE, format) for format in ("PNG", "JPEG", "WEBP", "GIF")]
    requests = [(b"image/png", file) for file in files] + [(form, form_of(file)) for file in files]
    query = b"format=json&steps=3&samples=2&scales=0.5,1&flip=True&seed=7&uncertainty=True"
    rng, statuses = np.random.default_rng(3), []
    for number, (kind, body) in zip(range(300), itertools.cycle(requests)):
        (body,) = damaged(body, number, 1) if rng.random() < 0.6 else (body,)
        (text,) = damaged(query, number + 1000, 1) if rng.random() < 0.4 else (query,)
        (kind,) = damaged(kind, number + 2000, 1) if rng.random() < 0.2 else (kind,)
        url = f"/predict?{quote(text, safe='=&')}"
        response = client.post(url, content=body, headers=[(b"content-type", kind)])
        statuses.append(response.status_code)
        assert response.status_code in (200, 400, 413, 415, 422), (number, response.text)
        if response.status_code != 200:
            assert len(error_of(response)) < 2000
    assert {200, 400, 415, 422} <= set(statuses) and statuses.count(200) > 20
    assert "Traceback" not in capsys.readouterr().err
    assert ask(client).status_code == 200
