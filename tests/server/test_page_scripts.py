"""Scripts of the annotation page without a browser: their modules in Node.js, where it is there."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import diffseg_jax.server

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(not NODE, reason="no Node.js: apt-get install nodejs")

PAINTS_WHILE_ANOTHER_IMAGE_LOADS = """
import { OpenImages } from "./images.js";
import { Tools } from "./tools.js";

const plane = () => new Uint8Array(64).fill(255);
const layers = { strokes: { update() {} } };
const docs = [0, 1].map((index) => ({
  index, layers, width: 8, height: 8, ids: plane(), shadow: plane(),
  history: { undo: [], redo: [] },
}));
const sent = [];
let loaded;
const hooks = { shown() {}, connection() {}, leave: () => tools.cancel() };
const images = new OpenImages({ images: [] }, hooks);
images.queue.add = (doc) => sent.push(doc.index);
images.load = () => new Promise((resolve) => (loaded = resolve));
images.current = docs[0];

const element = { addEventListener() {}, setPointerCapture() {}, focus() {} };
const canvas = { element, doc: docs[0], schedule() {}, locate: (x, y) => ({ x, y }) };
const tools = new Tools(canvas, {
  tool: process.argv[2], size: 1, classId: 2, hover() {},
  changed: (rect) => images.painted(rect),
  finished: (rect) => images.finish(rect),
  cancelled: (rect) => images.cancel(rect),
});
const at = (x, y) => ({ pointerId: 1, button: 0, detail: 1, clientX: x, clientY: y });

const opening = images.open(1);
for (const point of [at(1, 1), at(6, 1), at(6, 6)]) {
  tools.down(point);
  tools.move(point);
}
loaded(docs[1]);
canvas.doc = await opening;
tools.move(at(1, 6));
tools.up(at(1, 6));
tools.closeShape();
const painted = docs.map(({ ids }) => ids.filter((id) => id !== 255).length);
console.log(JSON.stringify({ painted, sent }));
"""


RESIZES_WITHOUT_AN_IMAGE = """
import { Canvas } from "./canvas.js";

const calls = { clearRect: [], fillRect: [] };
const context = new Proxy({}, {
  get: (_, name) => (...sides) => (calls[name] ??= []).push(sides),
  set: () => true,
});
const element = (width) => ({
  getContext: () => context, getBoundingClientRect: () => ({ width, height: 50 }),
});
globalThis.window = {};
globalThis.ResizeObserver = class { observe() {} };
globalThis.requestAnimationFrame = (draw) => draw();

const canvas = new Canvas(element(100), element(100), () => ({ surround: "black" }));
canvas.doc = { width: 10, height: 10, levels: [], layers: {} };
canvas.resize();
canvas.zoom(4, 10, 10);
canvas.doc = null;
calls.fillRect = [];
for (canvas.sides of [false, true]) canvas.resize();
canvas.redraw();
console.log(JSON.stringify(calls.fillRect));
"""


def said_by(case, folder, *words):
    """The object that a script prints which lies beside those of the page."""
    for script in Path(diffseg_jax.server.__file__).parent.glob("*.js"):
        shutil.copy(script, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "case.js").write_text(case)
    command = [NODE, "case.js", *words]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


@pytest.mark.quick
@pytest.mark.parametrize("tool", ["brush", "polygon"])
def test_a_stroke_ends_where_its_image_does(tmp_path, tool):
    """While the next image loads, the one before can be painted; then its stroke is taken back."""
    said = said_by(PAINTS_WHILE_ANOTHER_IMAGE_LOADS, tmp_path, tool)
    assert said == {"painted": [0, 0], "sent": []}


@pytest.mark.quick
def test_a_zoomed_canvas_without_an_image_is_cleared(tmp_path):
    """The image may be gone when the command is started again; then the window is resized."""
    assert said_by(RESIZES_WITHOUT_AN_IMAGE, tmp_path) == [[0, 0, 100, 50]]
