"""Who may ask, what others are told, and what no request can do."""

import random

import numpy as np
import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from diffseg_jax.server.security import Access, Guarded
from page_case import ACCESS, Page, wait_for, write_images

BEARER = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    page = Page(write_images(folder / "photos"), folder / "annotated", start=False)
    page.patch(0, 0, 0, np.zeros((2, 2), np.uint8), 0)
    return page


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"authorization": "Bearer secre"}, 403),
        ({"authorization": "Basic secret"}, 403),
        ({"cookie": f"{ACCESS.cookie}=wrong"}, 403),
        ({"cookie": "diffseg_jax_9=secret"}, 403),
        ({"cookie": b"\x01=;;;=\xff"}, 403),
        ({"cookie": f"{ACCESS.cookie}=secret"}, 200),
        (BEARER, 200),
        ({**BEARER, "host": "localhost:8123"}, 200),
        ({**BEARER, "host": "127.0.0.1:8124"}, 403),
        ({**BEARER, "host": "evil.example:8123"}, 403),
        ({**BEARER, "host": "127.0.0.1:8123@evil.example"}, 403),
        ({**BEARER, "host": ""}, 403),
        ({**BEARER, "origin": "http://127.0.0.1:8123"}, 200),
        ({**BEARER, "origin": "https://127.0.0.1:8123"}, 403),
        ({**BEARER, "origin": "http://evil.example"}, 403),
        ({**BEARER, "origin": "null"}, 403),
    ],
)
def test_only_the_page_itself_may_ask(page, headers, status):
    response = page.new_client().get("/api/project", headers=headers)
    assert response.status_code == status
    assert "'unsafe-inline'" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert status == 200 or set(response.json()) == {"error"}


def test_the_address_with_the_token_becomes_a_cookie(page):
    client = page.new_client()
    assert client.get("/?token=wrong").status_code == 403
    opened = client.get("/?token=secret")
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict"} <= set(opened.headers["set-cookie"].split("; "))
    assert client.get("/api/project").status_code == 200  # the client keeps the cookie


def test_a_link_of_another_site_opens_the_page(page):
    """After a redirect, a browser would not send the cookie."""
    headers = {"sec-fetch-site": "cross-site"}
    opened = page.new_client().get("/?token=secret", headers=headers)
    assert opened.status_code == 200 and "url=/" in opened.text and "secret" not in opened.text


def test_in_a_notebook_the_token_is_in_the_path(page):
    app = Guarded(page.routes, Access("secret", "127.0.0.1", 8123, in_path=True))
    client = TestClient(app, base_url="http://proxy.example")
    assert client.get("/secret/api/project").status_code == 200
    assert client.get("/secret/page.css").status_code == 200
    for path in ("/api/project", "/secre/api/project", "/", "//secret/api/project"):
        assert client.get(path, headers=BEARER).status_code == 403
    assert "set-cookie" not in client.get("/secret/?token=secret").headers


@pytest.mark.parametrize(
    ("bound", "name", "allowed"),
    [
        ("127.0.0.1", "localhost:80", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "[::1]:80", True),
        ("127.0.0.1", "10.0.0.1:80", False),
        ("10.0.0.1", "10.0.0.1:80", True),
        ("10.0.0.1", "localhost:80", False),
        ("0.0.0.0", "10.0.0.1:80", True),
        ("0.0.0.0", "evil.example:80", False),
        ("0.0.0.0", "[::1:80", False),
        ("127.0.0.1", "127.0.0.1:80/x", False),
        ("127.0.0.1", "127.0.0.1:x", False),
    ],
)
def test_names_under_which_a_server_may_be_reached(bound, name, allowed):
    assert Access("t", bound, 80).allows_host(name) is allowed


def test_a_failure_of_the_server_is_one_sentence(capsys):
    def fail(request):
        raise ZeroDivisionError("in /home/anna/photos")

    app = Guarded([Route("/", fail)], Access("", "127.0.0.1", 80))
    response = TestClient(app, base_url="http://127.0.0.1").get("/")
    assert response.status_code == 500
    assert response.json() == {"error": "the server failed: ZeroDivisionError."}
    assert "Traceback" in capsys.readouterr().err


REQUESTS = [  # method, path, query, headers, body
    ("GET", "/api/project", "", {}, b""),
    ("GET", "/api/images/1", "side=16", {}, b""),
    ("GET", "/api/images/0/labels", "", {"if-none-match": '"1"'}, b""),
    ("GET", "/api/images/0/prediction", "fit=1", {}, b""),
    ("GET", "/api/images/0/uncertain", "", {}, b""),
    (
        "PATCH",
        "/api/images/0/labels",
        "x=1&y=2&width=2&height=2",
        {"if-match": '"KEY-1"'},
        b"\0\1\xfe\2",
    ),
    ("POST", "/api/images/0/accept", "", {}, b'{"accepted": true, "fit": 0}'),
    ("POST", "/api/classes", "", {}, b'{"name": "car"}'),
    ("POST", "/api/export", "", {}, b"{}"),
]
PIECES = [
    "", "..", "%2e%2e%2f", "-1", "99999999999999999999", "\u0661", "NaN", "1.5", "null", "[]",
    "true", '"', "%00", "{" * 50, "x" * 5000, "9" * 5000, "\xe9", "'", ";", "&", "%ff",
]  # fmt: skip
METHODS = ["GET", "PUT", "PATCH", "POST", "X"]


def mutate(text, numbers):
    """The text with a piece in place of some part of it."""
    start, end = sorted(numbers.choices(range(len(text) + 1), k=2))
    return text[:start] + numbers.choice(PIECES) + text[end:]


def test_mutated_requests_fail_with_a_sentence(page, capsys):
    numbers = random.Random(0)
    for _ in range(300):
        method, path, query, headers, body = numbers.choice(REQUESTS)
        key = page.store.images[0].key
        headers = {name: value.replace("KEY", key) for name, value in headers.items()}
        what = numbers.choice(["method", "path", "query", "header", "body"])
        method = (
            numbers.choice(["GET", "PUT", "PATCH", "POST", "X"]) if what == "method" else method
        )
        path = "/" + mutate(path, numbers).lstrip("/") if what == "path" else path
        query = mutate(query, numbers) if what == "query" else query
        if what == "header":
            name = numbers.choice(["if-match", "content-length", "if-none-match"])
            headers = {**headers, name: mutate(headers.get(name, "12"), numbers).encode()}
        body = mutate(body.decode("latin-1"), numbers).encode() if what == "body" else body
        path = path.replace("?", "").replace("#", "")
        if "/events" in path:
            continue
        response = page.client.request(method, f"{path}?{query}", headers=headers, content=body)
        assert response.status_code < 500, (method, path, query, headers, body)
        if response.status_code >= 400 and method != "HEAD":
            assert response.json()["error"]
    assert "Traceback" not in capsys.readouterr().err


def test_a_page_makes_nothing_but_its_own_files(tmp_path):
    """By every request that there is, and by some for files beside its folder."""
    page = Page(write_images(tmp_path / "photos"), tmp_path / "annotated")
    page.patch(0, 0, 0, np.zeros((2, 2), np.uint8), 0)
    page.patch(0, 0, 10, np.ones((2, 2), np.uint8), 1)
    page.client.post("/api/fit")
    wait_for(lambda: page.store.described(2)["fit"] and page.worker.state["phase"] == "idle")
    for method, path, query, headers, body in REQUESTS:
        page.client.request(method, f"{path}?{query}", headers=headers, content=body)
        for outside in ("../x", "%2e%2e%2fx", "..%5cx", "/x"):
            address = path.replace("images/0", f"images/{outside}")
            page.client.request(method, f"{address}?{query}", headers=headers, content=body)
    page.worker.stop()
    maps = {f"{part}/photo_{i}.png" for part in ("predictions", "uncertainty") for i in range(3)}
    made = {file.relative_to(page.store.folder) for file in page.store.folder.rglob("*.*")}
    assert {str(file) for file in made} == maps | {
        "classes.json", "project.json", "strokes/photo_0.png", "model/fit.json", "model/means.json",
        "dataset/classes.json", "dataset/images/photo_0.png", "dataset/masks/photo_0.png",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "annotated"}
    assert len(list((tmp_path / "photos").iterdir())) == 3
