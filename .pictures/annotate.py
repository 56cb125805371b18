"""Draws annotate.png: the annotation page in four steps, on street scenes that it draws.

python .pictures/annotate.py        (needs playwright and Chromium; two minutes on two CPU cores)

A program stands in for the person: it paints short strokes inside the true regions of two scenes,
fits, goes to the most uncertain scene, paints there and where the first one is wrong, and fits
again.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from make import as_png
from PIL import Image
from playwright.sync_api import sync_playwright
from scipy.ndimage import distance_transform_edt

from diffseg_jax.data.scenes import NAMES, PALETTE, draw_scene
from diffseg_jax.server.page_server import PageServer
from diffseg_jax.storage.paths import write_atomically, write_json

HERE = Path(__file__).parent
SEED, COUNT, SIZE = 2026, 6, (360, 480)  # scenes, their height and width
WINDOW = {"width": 1024, "height": 640}
SHOWN = (640, 400)  # width and height of a step
LIMIT = 300_000  # bytes
GAP = 8  # pixels
ROUNDS = 2  # fits after the first one
SECONDS = 300_000  # milliseconds for a fit


def longest_line(region, reach):
    """Two points (x, y) of a horizontal line inside a region, or None if it is too small.

    region   bool[H,W]
    reach    half of the size of the brush, pixels
    """
    inside = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    if inside[y, x] < reach + 1:
        return None
    free = inside[y] > reach
    left = x - np.argmin(free[x::-1]) if not free[: x + 1].all() else 0
    right = x + np.argmin(free[x:]) if not free[x:].all() else len(free) - 1
    return (max(left, x - 50) + 0.5, y + 0.5), (min(right, x + 50) + 0.5, y + 0.5)


class Person:
    """Who uses the page: knows the truth of every scene, and moves the mouse."""

    def __init__(self, page, truths):
        self.page, self.truths = page, truths

    def open(self, index):
        self.page.evaluate("(index) => document.getElementById(`image-${index}`).click()", index)
        self.page.wait_for_selector(f'body[data-image="{index}"]')
        self.page.keyboard.press("0")

    def stroke(self, class_id, points):
        """Paints a line in pixels of the image, which is shown whole."""
        box, (height, width) = self.page.locator("#canvas").bounding_box(), SIZE
        scale = 0.98 * min(box["width"] / width, box["height"] / height)
        corner = [box["x"] + (box["width"] - scale * width) / 2,
                  box["y"] + (box["height"] - scale * height) / 2]  # fmt: skip
        self.page.keyboard.press(str(class_id + 1))
        for number, point in enumerate(points):
            self.page.mouse.move(*(np.array(point) * scale + corner), steps=4)
            if not number:
                self.page.mouse.down()
        self.page.mouse.up()

    def paint_regions(self, index, size):
        """One stroke for every class of a scene."""
        self.open(index)
        self.set_brush(size)
        for class_id in np.unique(self.truths[index]):
            if line := longest_line(self.truths[index] == class_id, size / 2):
                self.stroke(class_id, line)
        self.page.wait_for_selector('body[data-pending="0"]')

    def set_brush(self, size):
        self.page.fill("#size", str(100 * np.log(size) / np.log(400)))

    def fit(self, number):
        self.page.keyboard.press("f")
        for name, value in (("fits", number), ("fit", number), ("phase", "idle")):
            self.page.wait_for_selector(f'body[data-{name}="{value}"]', timeout=SECONDS)

    def mend(self, store, index, size):
        """Strokes where the prediction is wrong, the largest error of each class."""
        self.open(index)
        self.set_brush(size)
        predicted = np.asarray(store.predicted(index, "predictions"))
        for class_id in np.unique(self.truths[index]):
            wrong = (self.truths[index] == class_id) & (predicted != class_id)
            if line := longest_line(wrong, size / 2):
                self.stroke(class_id, line)
        self.page.wait_for_selector('body[data-pending="0"]')

    def picture(self):
        self.page.mouse.move(2, 2)
        self.page.wait_for_timeout(300)
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            self.page.screenshot(path=file.name)
            return Image.open(file.name).convert("RGB").resize(SHOWN, Image.Resampling.LANCZOS)


def steps(person, store):
    """The four pictures."""
    page = person.page
    person.paint_regions(1, 9)
    person.paint_regions(0, 9)
    yield person.picture()
    person.fit(1)
    yield person.picture()
    page.keyboard.press("u")
    page.select_option("#order", "uncertain")
    page.keyboard.press("n")
    page.wait_for_selector("body[data-region]")
    yield person.picture()
    page.keyboard.press("u")
    for number in range(ROUNDS):
        person.paint_regions(int(page.get_attribute("body", "data-image")), 9)
        person.mend(store, 0, 9)
        person.fit(number + 2)
        page.keyboard.press("n")
        page.wait_for_timeout(500)
    person.open(0)
    page.keyboard.press("a")
    page.wait_for_timeout(500)
    yield person.picture()


def film(folder: Path, source: str) -> Image.Image:
    """Runs the page in a folder, and joins the pictures."""
    scenes = [draw_scene(SEED, index, *SIZE) for index in range(COUNT)]
    (folder / "streets").mkdir()
    for number, scene in enumerate(scenes):
        Image.fromarray(scene["image"]).save(folder / "streets" / f"street_{number}.png")
    classes = {"names": list(NAMES), "palette": [list(map(int, colour)) for colour in PALETTE]}
    write_json(folder / "classes.json", classes)
    server = PageServer([str(folder / "streets")], str(folder / "classes.json"), source=source)
    server.run_in_thread()
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW)
        page.goto(server.url)
        page.wait_for_selector('body[data-image="0"]')
        pictures = list(steps(Person(page, [scene["mask"] for scene in scenes]), server.store))
        browser.close()
    server.stop(10)
    width, height = SHOWN
    sheet = Image.new("RGB", (2 * width + GAP, 2 * height + GAP), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, ((width + GAP) * (number % 2), (height + GAP) * (number // 2)))
    return sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=HERE / "annotate.png", type=Path)
    parser.add_argument("--features", default="", help="where features come from")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sheet = film(Path(folder), options.features)
    for colours in (256, 128, 64):
        content = as_png(sheet.quantize(colours, dither=Image.Dither.NONE))
        if len(content) < LIMIT:
            break
    write_atomically(options.output, content)
    print(f"{options.output}: {sheet.width} x {sheet.height}, {len(content) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
