"""The annotation page in a real browser: Chromium, driven by Playwright."""

import base64
import contextlib
import io
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from diffseg_jax.server.page_server import open_browser
from diffseg_jax.server.security import Access, Guarded
from page_case import LABELS, MeanColours, Page, full_disk, write_images

CHROMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, CHROMES)), "")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium: apt-get install chromium, or put google-chrome on the PATH"
)
ROOT = Path(__file__).parents[2]
EMPTY = 255
SECONDS = 8_000  # milliseconds until a step of the page counts as failed


@pytest.fixture(scope="module")
def browser():
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def serve(tmp_path):
    """serve(sizes, ...) -> a Page that really listens, with `url`, `port` and `end`."""
    ends = []

    def start(sizes=((48, 64),), engine=MeanColours, write=write_images, in_path=False, port=0):
        page = Page(write(tmp_path / "photos", sizes), tmp_path / "annotated", engine=engine)
        listener = socket.create_server(("127.0.0.1", port))
        access = Access("secret", "127.0.0.1", listener.getsockname()[1], in_path)
        app = Guarded(page.routes, access)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        page.url, page.port = access.url, access.port

        def end():
            server.should_exit = True
            page.events.close()
            page.worker.stop()
            thread.join(5)

        page.end = end
        ends.append(end)
        return page

    yield start
    for end in ends:
        end()


@pytest.fixture
def open_tab(browser):
    """open_tab(url) -> Tab; open_tab(url, beside=tab) is another tab of the same window."""
    contexts = []

    def start(url, beside=None, image=0, **options):
        if not beside:
            size = {"width": 1280, "height": 720}
            contexts.append(browser.new_context(viewport=size, **options))
        return Tab(contexts[-1].new_page(), url, image)

    yield start
    errors = [error for context in contexts for page in context.pages for error in page.errors]
    for context in contexts:
        context.close()
    assert not errors


class Tab:
    """A tab with the page. Points are (x, y) in pixels of the image, which is shown whole."""

    def __init__(self, page, url, image=0):
        self.page, self.errors = page, []
        page.errors = self.errors
        page.set_default_timeout(SECONDS)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)
        self.shows(image)

    def wait_for(self, name, value):
        self.page.wait_for_selector(f'body[data-{name}="{value}"]')

    def shows(self, image):
        """Waits until it shows an image."""
        self.wait_for("image", image)
        project = self.evaluate("() => fetch('api/project').then((answer) => answer.json())")
        self.size = tuple(project["images"][image][side] for side in ("width", "height"))

    def spot(self, point):
        """A point of the image in pixels of the window."""
        box, (width, height) = self.page.locator("#canvas").bounding_box(), self.size
        scale = 0.98 * min(box["width"] / width, box["height"] / height)
        return (
            box["x"] + box["width"] / 2 + (point[0] - width / 2) * scale,
            box["y"] + box["height"] / 2 + (point[1] - height / 2) * scale,
        )

    def data(self, name):
        return self.page.get_attribute("body", f"data-{name}")

    def evaluate(self, script, argument=None):
        return self.page.evaluate(script, argument)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def brush(self, size):
        self.page.fill("#size", str(100 * np.log(size) / np.log(400)))
        assert self.page.inner_text("#size-text") == f"{size} px"

    def stroke(self, *points, button="left"):
        mouse = self.page.mouse
        for number, point in enumerate(points):
            mouse.move(*self.spot(point))
            if not number:
                mouse.down(button=button)
        mouse.up(button=button)

    def saved(self):
        self.wait_for("pending", 0)

    def fit(self, number=1):
        self.press("f")
        self.page.wait_for_selector(f'body[data-fit="{number}"]', timeout=120_000)

    def says(self, sentence):
        self.page.wait_for_selector(f'#messages :text("{sentence}")')

    def colour(self, point):
        """The colour on the screen at a point of the image."""
        x, y = self.spot(point)
        script = """([x, y]) => {
            const canvas = document.getElementById("canvas"), box = canvas.getBoundingClientRect();
            return [...canvas.getContext("2d").getImageData(x - box.left, y - box.top, 1, 1).data];
        }"""
        return np.array(self.evaluate(script, [x, y])[:3])


def swept(shape, points, size):
    """The pixels whose centres are within size / 2 of a line through points."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for (ax, ay), (bx, by) in zip(points, points[1:]):
        along = (x - ax) * (bx - ax) + (y - ay) * (by - ay)
        share = np.clip(along / max((bx - ax) ** 2 + (by - ay) ** 2, 1e-9), 0, 1)
        distance = np.hypot(x - ax - share * (bx - ax), y - ay - share * (by - ay))
        inside |= distance <= size / 2 + 1e-5
    return inside


def test_a_stroke_is_the_pixels_under_the_brush(serve, open_tab):
    page = serve()
    tab = open_tab(page.url)
    tab.brush(7)
    tab.press("2")
    first, second = ((10.5, 8.5), (50.5, 30.5), (41.5, 8.5)), ((30.5, 20.5), (20.5, 40.5))
    tab.stroke(*first)
    tab.press("3")
    tab.stroke(*second)
    tab.saved()
    expected = np.full((48, 64), EMPTY, np.uint8)
    expected[swept((48, 64), first, 7)] = 1
    expected[swept((48, 64), second, 7)] = 2
    np.testing.assert_array_equal(page.store.labels(0)[0], expected)
    assert np.abs(tab.colour((45.5, 27.5)) - LABELS.palette[1]).max() < 30  # over the image
    tab.page.mouse.move(*tab.spot((45.5, 27.5)))
    tab.page.wait_for_selector("#hover:text('45, 27 · painted road')")


def test_undo_redo_eraser_and_polygon(serve, open_tab):
    page = serve()
    tab = open_tab(page.url)
    tab.brush(5)
    tab.stroke((10.5, 10.5), (40.5, 10.5))
    tab.stroke((30.5, 10.5), (30.5, 30.5), button="right")  # erases
    tab.press("p", "3")
    for corner in ((5, 20), (25, 20), (25, 40), (5, 40)):
        tab.page.mouse.click(*tab.spot(corner))
    tab.press("Enter")
    tab.saved()
    line = np.where(swept((48, 64), ((10.5, 10.5), (40.5, 10.5)), 5), 0, EMPTY)
    erased = np.where(swept((48, 64), ((30.5, 10.5), (30.5, 30.5)), 5), EMPTY, line)
    square = erased.copy()
    square[20:40, 5:25] = 2
    steps = [np.full((48, 64), EMPTY), line, erased, square]
    for expected in (square, erased, line, steps[0]):
        tab.saved()
        np.testing.assert_array_equal(page.store.labels(0)[0], expected)
        tab.press("Control+z")
    assert page.store.described(0)["counts"] == [0, 0, 0]
    for expected in steps[1:]:
        tab.press("Control+Shift+z")
        tab.saved()
        np.testing.assert_array_equal(page.store.labels(0)[0], expected)


def test_a_fit_shows_prediction_and_uncertainty_and_segments_can_be_accepted(serve, open_tab):
    page = serve(sizes=((48, 64), (32, 32), (40, 40)))
    tab = open_tab(page.url)
    place = tab.page.locator("#classes").bounding_box()
    tab.press("f")
    tab.says("nothing is painted yet")  # the sentence of the server
    tab.brush(5)
    tab.press("1")
    tab.stroke((10.5, 5.5), (40.5, 5.5))
    tab.press("2")
    tab.stroke((10.5, 40.5), (40.5, 40.5))
    tab.fit()
    tab.page.wait_for_selector("#score:has-text('mean IoU on held-out strokes 50.0 %')")
    assert tab.page.locator("#classes .iou").all_inner_texts()[:2] == ["50 %", "–"]
    before = tab.colour((50.5, 10.5)), tab.colour((50.5, 35.5))
    assert np.abs(before[1] - before[0])[0] > 60  # sky above, road below
    tab.press("u")
    time.sleep(0.1)
    assert np.abs(tab.colour((50.5, 35.5)) - before[1]).max() > 20  # uncertain below: 0.75
    tab.page.wait_for_selector("#scale:has-text('100 %')")
    seen = tab.colour((50.5, 10.5))
    tab.page.fill("#opacity", "100")
    time.sleep(0.1)
    np.testing.assert_array_equal(tab.colour((50.5, 10.5)), seen)  # no prediction below it
    tab.press("r")
    tab.page.wait_for_selector("#scale", state="hidden")
    time.sleep(0.1)
    assert np.abs(tab.colour((50.5, 10.5)) - LABELS.palette[0]).max() < 5
    tab.fit(2)
    tab.page.wait_for_selector("#chart svg")
    assert tab.page.locator("#classes").bounding_box() == place  # no class moves under a click
    tab.press("s")
    tab.page.mouse.click(*tab.spot((50.5, 30.5)))
    tab.saved()
    labels = page.store.labels(0)[0]
    assert (labels[24:] == 1).all() and (labels[8:24] == EMPTY).all()
    tab.press("n")  # the most uncertain region of the image with the highest score
    tab.page.wait_for_selector("body[data-region]")
    tab.page.select_option("#order", "uncertain")
    first = tab.page.locator("#rows > div[aria-posinset='1']").get_attribute("id")
    assert tab.data("region").split()[0] == first.removeprefix("image-")
    tab.press("a")
    tab.page.wait_for_selector("#accept[aria-pressed='true']")
    accepted = [page.store.described(index)["accepted"] for index in range(3)]
    assert accepted.index(True) == int(tab.data("image")) and sum(accepted) == 1
    tab.page.click("#export")
    tab.page.wait_for_selector("#command:has-text('--config.data.path=')")


def test_a_prediction_that_nobody_has_seen_is_shown_before_it_is_accepted(serve, open_tab):
    page = serve()

    def predict(fit):
        page.store.add_prediction(
            0, fit, np.full((48, 64), fit, np.uint8), np.zeros((48, 64), np.float32)
        )

    predict(1)
    tab = open_tab(page.url)
    tab.wait_for("fit", 1)
    predict(2)  # of which no event has told yet
    tab.press("a")
    tab.says("this image has got the prediction of another fit")
    tab.wait_for("fit", 2)
    assert not page.store.described(0)["accepted"]
    tab.press("a")
    tab.page.wait_for_selector("#accept[aria-pressed='true']")
    assert page.store.described(0)["accepted"]
    tab.press("n")
    tab.says("All images are accepted.")


def test_a_full_disk_and_a_missing_file_are_told(serve, open_tab, tmp_path, monkeypatch):
    page = serve(sizes=((48, 64), (32, 32)))
    tab = open_tab(page.url)
    with monkeypatch.context() as patched:
        full_disk(patched, "photo_0.png")
        tab.stroke((10.5, 10.5), (30.5, 10.5))
        tab.page.wait_for_selector("#banner:has-text('No space left on device')")
        tab.page.wait_for_selector("#banner:has-text('1 change waits in this tab')")
    tab.saved()
    assert page.store.described(0)["revision"] == 1
    page.patch(1, 0, 0, np.zeros((2, 2), np.uint8), 0)
    (tmp_path / "photos" / "photo_1.png").unlink()
    tab.page.click("#export")
    tab.page.wait_for_selector("#exported-text:has-text('photo_1 is skipped')")


def test_a_reload_keeps_all(serve, open_tab):
    page = serve(sizes=((48, 64), (32, 32)))
    tab = open_tab(page.url)
    tab.press("PageDown")
    tab.shows(1)
    tab.stroke((5.5, 5.5), (20.5, 20.5))
    tab.page.fill("#name", "house")
    tab.press("Enter")
    tab.page.wait_for_selector("#classes li:nth-child(4)")
    tab.page.mouse.click(*tab.spot((28, 10)))
    tab.saved()
    seen = tab.colour((10.5, 10.5))
    tab.page.reload()
    tab.shows(1)
    time.sleep(0.1)
    np.testing.assert_array_equal(tab.colour((10.5, 10.5)), seen)
    assert tab.page.inner_text("#classes li:nth-child(4) .name") == "house"
    counts = page.store.described(1)["counts"]
    assert counts[0] and counts[3] and page.store.labels(1)[0][10, 28] == 3


def test_two_tabs_lose_no_stroke(serve, open_tab):
    page = serve()
    one = open_tab(page.url)
    two = open_tab(page.url, beside=one)
    one.brush(5)
    one.stroke((10.5, 10.5), (30.5, 10.5))
    one.saved()
    two.page.wait_for_selector("#classes li:first-child .count:not(:text('–'))")
    two.page.wait_for_timeout(200)  # it has heard of the stroke, and shows it
    np.testing.assert_array_equal(two.colour((20.5, 10.5)), one.colour((20.5, 10.5)))
    for tab, y in ((one, 20.5), (two, 30.5)):  # neither hears of the other before it is done
        tab.press("2")
        tab.brush(5)
        tab.page.mouse.move(*tab.spot((10.5, y)))
        tab.page.mouse.down()
    for tab, y in ((one, 20.5), (two, 30.5)):
        tab.page.mouse.move(*tab.spot((40.5, y)))
        tab.page.mouse.up()
        tab.saved()
    two.says("painted in another tab")
    expected = np.full((48, 64), EMPTY)
    for y, right, value in ((10.5, 30.5, 0), (20.5, 40.5, 1), (30.5, 40.5, 1)):
        expected[swept((48, 64), ((10.5, y), (right, y)), 5)] = value
    np.testing.assert_array_equal(page.store.labels(0)[0], expected)
    two.press("Control+z")
    two.saved()
    assert page.store.described(0)["counts"][1] == np.sum(expected[:26] == 1)


def test_a_finger_paints_and_two_fingers_zoom(serve, open_tab):
    page = serve()
    tab = open_tab(page.url, has_touch=True)
    session = tab.page.context.new_cdp_session(tab.page)

    def touch(kind, *points):
        places = [dict(zip("xy", tab.spot(point)), id=i) for i, point in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    tab.brush(5)
    touch("touchStart", (10.5, 10.5))
    touch("touchMove", (40.5, 20.5))
    touch("touchEnd")
    tab.saved()
    touch("touchStart", (30, 20))  # paints, until there is a second finger
    touch("touchStart", (30, 20), (34, 20))
    touch("touchMove", (22, 20), (42, 20))
    touch("touchEnd")
    tab.saved()
    line = swept((48, 64), ((10.5, 10.5), (40.5, 20.5)), 5)
    np.testing.assert_array_equal(page.store.labels(0)[0] == 0, line)
    tab.page.mouse.click(*tab.spot((2, 44)))  # zoomed in, another pixel is there
    tab.saved()
    labels = page.store.labels(0)[0]
    assert np.sum(labels == 0) > line.sum() and labels[44, 2] == EMPTY


def test_zoom_keeps_the_pixel_under_the_pointer(serve, open_tab):
    tab = open_tab(serve(in_path=True).url)  # as in a frame of a notebook, without cookies
    mouse, here = tab.page.mouse, "#hover:text-is('50, 30')"
    mouse.move(*tab.spot((50.5, 30.5)))
    tab.page.wait_for_selector(here)
    for turn in (-300, -300, 200):
        mouse.wheel(0, turn)
    tab.page.keyboard.down("Space")
    mouse.down()
    mouse.move(*tab.spot((20.5, 10.5)))
    mouse.up()
    tab.page.keyboard.up("Space")
    tab.page.wait_for_selector(here)  # it has moved with the pointer
    tab.press("0")
    mouse.move(*tab.spot((5.5, 7.5)))
    tab.page.wait_for_selector("#hover:text-is('5, 7')")
    tab.stroke((5.5, 7.5))
    tab.saved()


def test_strokes_wait_while_the_server_is_away(serve, open_tab):
    page = serve()
    tab = open_tab(page.url)
    tab.page.context.set_offline(True)
    tab.brush(5)
    tab.stroke((10.5, 10.5), (30.5, 10.5))
    tab.page.wait_for_selector("#banner:has-text('1 change waits in this tab')")
    tab.stroke((10.5, 20.5), (30.5, 20.5))
    tab.press("Control+z")
    tab.stroke((10.5, 30.5), (30.5, 30.5))
    tab.page.wait_for_selector("#banner:has-text('4 changes wait in this tab')")
    assert tab.page.inner_text("#saved") == "waiting"
    assert page.store.described(0)["revision"] == 0
    tab.page.context.set_offline(False)
    tab.saved()
    expected = [swept((48, 64), ((10.5, y), (30.5, y)), 5) for y in (10.5, 30.5)]
    np.testing.assert_array_equal(page.store.labels(0)[0] == 0, expected[0] | expected[1])
    tab.page.wait_for_selector("#banner", state="hidden")


def test_a_stroke_that_waited_finds_its_image_which_has_another_name(serve, open_tab, tmp_path):
    page = serve(sizes=((48, 64), (48, 64)))
    tab = open_tab(page.url)
    tab.press("PageDown")
    tab.shows(1)
    page.end()
    tab.page.wait_for_selector("#banner:has-text('cannot be reached')")
    tab.brush(5)
    tab.stroke((10.5, 10.5), (30.5, 10.5))
    photo = tmp_path / "photos" / "photo_1.png"
    os.rename(photo, photo.with_stem("photo_7"))
    Image.new("RGB", (64, 48)).save(photo)
    page = serve(write=lambda folder, _: folder, port=page.port)
    tab.saved()
    tab.shows(2)
    names = [page.store.described(index)["name"] for index in range(3)]
    painted = [page.store.described(index)["counts"][0] > 0 for index in range(3)]
    assert (names, painted) == (["photo_0", "photo_1", "photo_7"], [False, False, True])
    assert tab.page.inner_text("#title") == "photo_7"


def test_a_stroke_on_an_image_that_was_replaced_is_given_up_with_a_sentence(
    serve, open_tab, tmp_path
):
    page = serve()
    tab = open_tab(page.url)
    page.end()
    tab.page.wait_for_selector("#banner:has-text('cannot be reached')")
    tab.stroke((10.5, 10.5), (30.5, 10.5))
    Image.new("RGB", (64, 48)).save(tmp_path / "photos" / "photo_0.png")
    page = serve(write=lambda folder, _: folder, port=page.port)
    tab.says("The strokes on photo_0 could not be saved")
    tab.saved()
    assert page.store.described(0)["revision"] == 0


def test_a_file_that_is_opened_leads_to_the_page(serve, open_tab, tmp_path, monkeypatch):
    """As the command opens it, without the token on the command line of the browser."""
    opened, page = [], serve()
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    open_browser(page.url, tmp_path)
    tab = open_tab(opened[0])
    tab.page.wait_for_url(f"http://127.0.0.1:{page.port}/#0")


def test_a_wrong_token_is_refused(serve, browser):
    page = serve()
    context = browser.new_context()
    tab = context.new_page()
    for address in (page.url.replace("secret", "guess"), page.url.partition("?")[0]):
        assert tab.goto(address).status == 403
        assert "token" in tab.inner_text("body")
    context.close()


@contextlib.contextmanager
def annotate(tmp_path):
    """The command itself in a process of its own: the process and the address that it prints."""
    flags = [f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'annotated'}"]
    flags += ["--classes=sky,road", "--features=colour", "--open=False"]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffseg_jax.annotate", *flags, "--compilation_cache="], text=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        lines = iter(process.stdout.readline, "")
        yield process, next(filter(None, (re.search(r"http://\S+", line) for line in lines)))[0]
    finally:
        process.kill()
        process.communicate()


def test_a_killed_command_loses_no_stroke_and_fits_when_it_is_started_again(tmp_path, open_tab):
    write_images(tmp_path / "photos", ((48, 64), (32, 32)))
    with annotate(tmp_path) as (process, url):
        tab = open_tab(url)
        tab.brush(5)
        tab.stroke((10.5, 10.5), (50.5, 10.5))
        tab.saved()
        process.kill()
        tab.press("2")
        tab.stroke((10.5, 40.5), (50.5, 40.5))
        tab.page.wait_for_selector("#banner:has-text('1 change waits in this tab')")
    with annotate(tmp_path) as (process, again):
        assert again == url
        tab.saved()
        assert not tab.page.locator("#messages > *").count()
        tab.fit()
        ids = np.asarray(Image.open(tmp_path / "annotated" / "predictions" / "photo_0.png"))
        assert (ids[:20, 5:60] == 0).mean() > 0.9 and (ids[30:, 5:60] == 1).mean() > 0.9
    strokes = np.asarray(Image.open(tmp_path / "annotated" / "strokes" / "photo_0.png"))
    expected = np.full((48, 64), EMPTY)
    for y, value in ((10.5, 0), (40.5, 1)):
        expected[swept((48, 64), ((10.5, y), (50.5, y)), 5)] = value
    np.testing.assert_array_equal(strokes, expected)


def test_two_hundred_images_are_few_elements(serve, open_tab):
    page = serve(sizes=((8, 8),) * 200)
    tab = open_tab(page.url)
    assert tab.page.locator("#rows > div").count() < 30
    tab.evaluate("() => { document.getElementById('list').scrollTop = 1e6; }")
    tab.page.click("#image-199")
    tab.shows(199)
    assert tab.page.locator("#rows > div").count() < 30
    scrolled = "() => document.getElementById('list').scrollTop"
    place = tab.evaluate("() => (document.getElementById('list').scrollTop = 6030)")
    tab.page.locator("#image-100").click(position={"x": 20, "y": 50})  # half of the row is hidden
    tab.shows(100)
    assert tab.evaluate(scrolled) == place  # the next click meets the row that was aimed at
    tab.press("PageUp")
    tab.shows(99)
    assert tab.evaluate(scrolled) < place
    tab.page.fill("#filter", "photo_12")
    names = [page.store.described(index)["name"] for index in range(200)]
    tab.page.wait_for_selector(f"#image-{names.index('photo_120')}")
    assert tab.page.locator("#rows > div").count() == 11


def write_large(folder, sizes):
    folder.mkdir()
    (height, width), = sizes
    image = np.empty((height, width, 3), np.uint8)
    image[:] = 40 * (np.arange(width) // 100 % 6)[:, None]
    Image.fromarray(image).save(folder / "large.jpg")
    return folder


def test_twelve_megapixels_are_painted_without_delay(serve, open_tab):
    page = serve(sizes=((3000, 4000),), write=write_large)
    tab = open_tab(page.url)
    tab.brush(60)
    tab.page.mouse.move(*tab.spot((1000, 1000)))
    tab.page.mouse.down()
    tab.evaluate("""() => {
        const frames = window.frames = [];
        const next = (now) => { frames.push(now); requestAnimationFrame(next); };
        requestAnimationFrame(next);
    }""")
    for angle in np.arange(40) / 6:
        tab.page.mouse.move(*tab.spot((2000 + 1000 * np.cos(angle), 1500 + 1000 * np.sin(angle))))
    times = np.diff(tab.evaluate("() => window.frames"))
    tab.page.mouse.up()
    tab.saved()
    assert page.store.described(0)["counts"][0] > 60 * 5000
    assert np.median(times) < 40, times  # milliseconds; 17 on a machine that does nothing else


def png(rows, filters):
    """An 8-bit grey PNG of u8[H,W] whose rows use these filters (PNG specification, section 9)."""
    data, before = b"", np.zeros(rows.shape[1] + 1, int)
    for row, kind in zip(rows.astype(int), filters):
        now = np.concatenate([[0], row])
        left, up, corner = now[:-1], before[1:], before[:-1]
        estimate = left + up - corner
        nearest = [abs(estimate - each) for each in (left, up, corner)]
        paeth = np.where(
            (nearest[0] <= nearest[1]) & (nearest[0] <= nearest[2]), left,
            np.where(nearest[1] <= nearest[2], up, corner),
        )  # fmt: skip
        guess = (0, left, up, (left + up) // 2, paeth)[kind]
        data += bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        before = now
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *rows.shape[::-1], 8, 0, 0, 0, 0))]
    packed = zlib.compress(data)
    parts += [(b"IDAT", packed[:20]), (b"IDAT", packed[20:]), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_every_id_and_every_filter_of_png_is_read_exactly(serve, open_tab):
    tab = open_tab(serve().url)
    rng = np.random.default_rng(0)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    noise = rng.integers(0, 256, (70, 50), np.uint8)
    maps = [ramp, ramp.T, noise, ramp[:1, :1], noise]
    files = [png(each, np.arange(len(each)) % 5) for each in maps[:4]] + [png(noise, [4] * 70)]
    np.testing.assert_array_equal(Image.open(io.BytesIO(files[2])), maps[2])
    read = tab.evaluate(
        """async (files) => {
            const { readGreyPng } = await import(new URL("planes.js", location.href).href);
            const bytes = (file) => Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
            const maps = await Promise.all(files.map((file) => readGreyPng(bytes(file).buffer)));
            return maps.map(({ width, height, data }) => [width, height, [...data]]);
        }""",
        [base64.b64encode(file).decode() for file in files],
    )
    for expected, (width, height, data) in zip(maps, read):
        np.testing.assert_array_equal(np.reshape(data, (height, width)), expected)


def test_controls_have_names_and_keys(serve, open_tab):
    tab = open_tab(serve().url)
    unnamed = tab.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas[tabindex]")]
            .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim()
                || each.labels?.[0]?.textContent.trim())).map((each) => each.outerHTML)"""
    )
    assert unnamed == []
    tab.press("?")
    tab.page.wait_for_selector("#keys[open] :text('undo')")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_picture_of_the_page_can_be_drawn(tmp_path):
    program, output = ROOT / ".pictures" / "annotate.py", tmp_path / "annotate.png"
    command = [sys.executable, program, f"--output={output}", "--features=colour"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert output.stat().st_size < 300_000 and Image.open(output).width > 1200
