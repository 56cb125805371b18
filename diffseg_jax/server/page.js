// The annotation page: what is open, what the keys do, and what the server says.

import { Canvas } from "./canvas.js";
import { Problem, Unreachable, follow, getJson, postJson, request } from "./connection.js";
import { OpenImages } from "./images.js";
import { listenToKeys } from "./keys.js";
import { ImageList, adviceOf, drawChart, drawClasses, make, percent, sorted } from "./panels.js";
import { Tools } from "./tools.js";

const $ = (id) => document.getElementById(id);
const REGIONS = 3; // uncertain regions that are shown before the next image
const MAX_SKIPPED = 5; // images without an export that are named

const project = { classes: [], images: [], fits: [], state: { phase: "idle" } };
let totals = []; // painted pixels of each class

// ---- messages ----

/** Shows a sentence; it goes when it is clicked, or after some seconds. */
function say(sentence, kind = "note") {
  const box = $("messages");
  for (const old of [...box.children]) if (old.title === sentence) old.remove();
  while (box.children.length > 2) box.firstChild.remove();
  const close = make("button", { type: "button", className: "small" }, "×");
  close.setAttribute("aria-label", "Close the message");
  const message = make("p", { className: kind, title: sentence }, make("span", {}, sentence), close);
  close.addEventListener("click", () => message.remove());
  box.append(message);
  setTimeout(() => message.remove(), kind === "error" ? 30_000 : 9_000);
}

/** Runs an action of the user; what fails is said in the sentence of the server. */
async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    say(error.message, "error");
    if (!(error instanceof Problem)) throw error;
    return undefined;
  }
}

/** Loads something that nobody has asked for; the banner says that the server is away. */
function quietly(action) {
  return attempt(async () => {
    try {
      await action();
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
    }
  });
}

let lost = ""; // why the stream of events has ended

function showConnection() {
  const { queue } = images;
  const count = queue.waiting.length;
  document.body.dataset.pending = count;
  const trouble = queue.trouble || lost;
  const strokes = count === 1 ? "1 change waits" : `${count} changes wait`;
  const kept = count ? ` ${strokes} in this tab and will be saved then; keep it open.` : "";
  $("banner").textContent = `${trouble} Trying again.${kept}`;
  $("banner").hidden = !trouble;
  $("saved").textContent = count ? (trouble ? "waiting" : "saving") : images.current ? "saved" : "";
  showTools();
}

// ---- images ----

/** Takes a new state of an image. */
function update(image) {
  const old = project.images[image.index];
  if (old?.revision > image.revision) { // an event that is older than the response to a stroke
    image = { ...image, revision: old.revision, counts: old.counts };
  }
  project.images[image.index] = image;
  image.counts.forEach((count, id) => {
    totals[id] = (totals[id] ?? 0) + count - (old?.counts[id] ?? 0);
  });
  later();
  quietly(() => images.heard(image));
}

/** The pixels of the current image have changed. */
function shown(doc, rect) {
  if (rect) canvas.redrawRect(rect);
  else canvas.redraw();
  if (!rect) showTools();
  if (doc.fit) document.body.dataset.fit = doc.fit;
}

/** Opens an image; the list does not scroll to a row that was clicked, since a click may follow. */
async function open(index, clicked = false) {
  if (!project.images[index]) return;
  list.current = index;
  list.later();
  location.replace(`#${index}`);
  const doc = await attempt(() => images.open(index));
  if (!doc) {
    if (list.current === index) list.show(list.images, images.current?.index ?? -1);
    return;
  }
  canvas.doc = doc;
  canvas.outline = null;
  canvas.fitted = true;
  canvas.arrange();
  if (!clicked) list.reveal();
  later();
  showTools();
  showConnection();
  document.body.dataset.image = index;
  quietly(() => images.complete(doc));
}

// ---- painting ----

const painting = {
  tool: "brush",
  size: 20,
  classId: 0,
  changed(rect) {
    if (!canvas.shown.has("strokes")) toggle("strokes"); // nobody paints what is not shown
    images.painted(rect);
  },
  finished: (rect) => images.finish(rect),
  cancelled: (rect) => images.cancel(rect),
  pick(point) {
    if (!point || !images.current) return;
    const id = at(images.current.ids, point);
    const found = id < project.classes.length ? id : at(images.current.prediction, point);
    if (found < project.classes.length) choose(found);
  },
  say,
  hover,
};

function at(plane, { x, y }) {
  return plane?.[Math.floor(y) * images.current.width + Math.floor(x)] ?? 255;
}

let pointer = null; // in pixels of the image

/** What is under the pointer, in words. */
function hover(point) {
  pointer = point;
  const doc = images.current;
  const parts = [];
  if (point && point.x >= 0 && point.y >= 0 && point.x < doc.width && point.y < doc.height) {
    parts.push(`${Math.floor(point.x)}, ${Math.floor(point.y)}`);
    const [painted, predicted] = [at(doc.ids, point), at(doc.prediction, point)];
    if (painted < project.classes.length) parts.push(`painted ${project.classes[painted].name}`);
    if (doc.prediction && predicted < project.classes.length) {
      const error = percent(at(doc.uncertainty, point) / 255);
      parts.push(`predicted ${project.classes[predicted].name}, ${error} uncertain`);
    }
  }
  $("hover").textContent = parts.join(" · ");
}

function choose(id) {
  if (id >= project.classes.length) return;
  painting.classId = id;
  if (painting.tool === "eraser" || painting.tool === "segment") setTool("brush");
  later();
}

function undo() {
  if (!tools.cancel()) images.undo();
}

function redo() {
  if (!tools.cancel()) images.redo();
}

function setTool(tool) {
  tools.cancel();
  painting.tool = tool;
  canvas.brush = null;
  canvas.schedule();
  showTools();
}

/** The size of the brush from the slider: 1 to 400 pixels, finer where it is small. */
const sizeAt = (value) => Math.max(1, Math.round(400 ** (value / 100)));

function setSize(size) {
  painting.size = Math.max(1, Math.min(400, size));
  $("size").value = (100 * Math.log(painting.size)) / Math.log(400);
  $("size-text").textContent = `${painting.size} px`;
  if (canvas.brush) canvas.brush.size = painting.size;
  canvas.schedule();
}

// ---- panels ----

let scheduled = false;

/** Draws the panels in the next frame. */
function later() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    showPanels();
  });
}

function showPanels() {
  const { classes, fits } = project;
  list.newest = fits.at(-1)?.number ?? 0;
  const scored = project.images.some(({ score, accepted }) => score !== null && !accepted);
  $("list-head").style.visibility = scored ? "" : "hidden";
  list.show(sorted(project.images, $("order").value, $("filter").value), list.current);
  const accepted = project.images.filter((image) => image.accepted).length;
  $("done").textContent = `${accepted} of ${project.images.length} accepted`;
  const last = fits.at(-1);
  drawClasses($("classes"), classes, totals, last?.per_class ?? [], painting.classId, choose);
  $("class-head").textContent = last?.miou != null ? "pixels · IoU" : "pixels";
  const measured = fits.filter((fit) => fit.miou !== null);
  const gain = measured.length > 1 ? measured.at(-1).miou - measured.at(-2).miou : null;
  const sign = gain === null ? "" : ` (${gain < 0 ? "−" : "+"}${Math.abs(100 * gain).toFixed(1)})`;
  $("score").textContent = measured.length
    ? `mean IoU on held-out strokes ${percent(measured.at(-1).miou, 1)}${sign}`
    : fits.length
      ? "Too few strokes to measure the mean IoU."
      : "Paint a few strokes of every class, then press Fit.";
  $("score").title =
    "Every stroke is predicted by classifiers that did not learn from it. It tells about strokes, " +
    "not about whole images, and falls when you paint where it is hard.";
  drawChart($("chart"), fits);
  document.body.dataset.fits = fits.length;
  const image = project.images[images.current?.index];
  $("title").textContent = image ? image.name : "";
  $("accept").setAttribute("aria-pressed", String(Boolean(image?.accepted)));
  $("accept").textContent = image?.accepted ? "✓ Accepted" : "Accept";
  showState();
}

const PHASES = {
  features: "Reading images",
  fit: "Learning from strokes",
  scores: "Measuring on strokes held out",
  predict: "Predicting",
};

function showState() {
  const { phase, done, total, seconds_left: seconds, message } = project.state;
  const busy = phase !== "idle";
  document.body.dataset.phase = phase;
  $("bar").classList.toggle("idle", !busy);
  $("fit").textContent = phase === "fit" || phase === "predict" ? "Fit again" : "Fit";
  if (!busy) $("phase").textContent = adviceOf(project.fits);
  if (!busy) return;
  if (total) $("bar").value = done / total;
  else $("bar").removeAttribute("value");
  const count = total > 1 ? `, ${done} of ${total}` : "";
  const left = seconds == null ? "" : `, ${duration(seconds)} left`;
  $("phase").textContent = `${PHASES[message] ?? (message || PHASES[phase])}${count}${left}`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function showTools() {
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === painting.tool));
  }
  $("canvas").dataset.tool = painting.tool;
  const { undo: done, redo: undone } = images.current?.history ?? { undo: [], redo: [] };
  $("undo").disabled = !done.length;
  $("redo").disabled = !undone.length;
  for (const box of document.querySelectorAll("[data-layer]")) {
    const covered = box.dataset.layer === "prediction" && canvas.shown.has("uncertainty");
    box.checked = canvas.shown.has(box.dataset.layer) && !covered;
    box.disabled = canvas.sides;
  }
  $("sides").checked = canvas.sides;
  const uncertain = canvas.sides || canvas.shown.has("uncertainty");
  $("scale").hidden = !(uncertain && images.current?.uncertainty);
}

/** Shows or hides a layer. The uncertainty covers the prediction, which therefore ends it. */
function toggle(layer) {
  if (layer === "prediction" && canvas.shown.delete("uncertainty")) canvas.shown.add(layer);
  else if (canvas.shown.has(layer)) canvas.shown.delete(layer);
  else canvas.shown.add(layer);
  canvas.redraw();
  showTools();
}

function setSides(on) {
  canvas.sides = on;
  canvas.arrange();
  showTools();
}

// ---- what the server does ----

async function fit() {
  await images.queue.empty(); // it learns from every stroke on the screen
  const { number } = await postJson("api/fit");
  document.body.dataset.asked = number;
}

async function accept() {
  const doc = images.current;
  if (!doc) return;
  await images.queue.empty();
  const accepted = !project.images[doc.index].accepted;
  const body = accepted ? { accepted, fit: doc.fit } : { accepted }; // the fit that is shown
  try {
    update(await postJson(`api/images/${doc.index}/accept?key=${doc.key}`, body));
  } catch (error) {
    if (error.body?.image) update(error.body.image); // which loads the newer prediction
    throw error;
  }
}

const visited = new Set(); // "fit image region" that Next uncertain has shown

/** Shows the most uncertain region that was not shown since the last fit. */
async function next() {
  const order = sorted(project.images, "uncertain", "").filter(
    (image) => image.score !== null && !image.accepted,
  );
  if (!order.length) return say(nothingUncertain());
  for (const round of [1, 2]) {
    if (round === 2) visited.clear();
    for (const { index, fit: number } of order) {
      const keys = Array.from({ length: REGIONS }, (_, i) => `${number} ${index} ${i}`);
      const region = keys.findIndex((key) => !visited.has(key));
      if (region < 0) continue;
      const { regions } = await getJson(`api/images/${index}/uncertain`);
      visited.add(keys[region]);
      if (!regions[region]) {
        keys.forEach((key) => visited.add(key));
        continue;
      }
      await open(index);
      if (images.current?.index !== index) return undefined;
      canvas.show((canvas.outline = regions[region]));
      document.body.dataset.region = `${index} ${region}`;
      return undefined;
    }
  }
  return say("Nothing uncertain is left in the images that are not accepted.");
}

/** Why no region of an image can be shown. */
function nothingUncertain() {
  if (project.images.every(({ accepted }) => accepted)) return "All images are accepted.";
  return project.images.some(({ score }) => score !== null)
    ? "All images that have a prediction are accepted: press Fit for the others."
    : "There is no uncertainty yet: press Fit first.";
}

async function exportAll() {
  await images.queue.empty();
  const { folder, masks, sparse, skipped, command } = await postJson("api/export");
  const whole = `${masks} accepted ${masks === 1 ? "image" : "images"} with whole masks`;
  const parts = [`${folder} holds ${whole}, and ${sparse} with strokes only.`];
  parts.push("The next export replaces this folder: keep your own changes of it elsewhere.");
  parts.push(...skipped.slice(0, MAX_SKIPPED));
  if (skipped.length > MAX_SKIPPED) parts.push(`${skipped.length} images are skipped in all.`);
  $("exported-text").replaceChildren(...parts.map((text) => make("p", {}, text)));
  $("command").textContent = command;
  $("copy").textContent = "Copy the command";
  $("exported").showModal();
}

/** Selects the command and copies it, where the browser allows that. */
function copyCommand() {
  getSelection().selectAllChildren($("command"));
  const written = navigator.clipboard?.writeText($("command").textContent);
  written?.then(() => ($("copy").textContent = "Copied"), () => {});
}

async function addClass(name) {
  takeClasses(await postJson("api/classes", { name }));
  choose(project.classes.length - 1);
  $("name").value = "";
}

function takeClasses(classes) {
  project.classes = classes;
  if (painting.classId === null && project.classes.length) painting.classId = 0;
  images.setColours(project.classes.map(({ colour }) => colour));
  later();
}

/** Reads the whole state of the project again. */
async function refresh() {
  const { classes, images: found, fits, state } = await getJson("api/project");
  const before = ({ index, key, name }) =>
    project.images[index]?.key === key && project.images[index].name === name;
  const same = found.every(before);
  if (project.images.length && !(same && found.length === project.images.length)) {
    const lost = images.renumber(found).join(", ");
    if (lost) say(`The strokes on ${lost} could not be saved: there is no such image any more.`);
    list.elements.clear();
    if (images.current) list.current = images.current.index;
    else {
      canvas.doc = null; // nothing can be painted until another image is open
      canvas.redraw();
    }
  }
  totals = [];
  Object.assign(project, { fits, state, images: [] });
  takeClasses(classes);
  found.forEach(update);
  if (!classes.length) painting.classId = null;
  if (images.current) document.body.dataset.image = images.current.index;
  else if (found.length) await open(Number(location.hash.slice(1)) || 0);
}

const events = {
  opened: () =>
    attempt(async () => {
      await refresh();
      lost = "";
      images.queue.wake();
      showConnection();
      document.body.dataset.live = "yes";
    }),
  async lost() {
    document.body.dataset.live = "no";
    images.queue.wasAway = true;
    lost = await request("api/project").then(() => "", (error) => error.message);
    showConnection();
  },
  state(state) {
    project.state = state;
    showState();
  },
  image: update,
  fit(fit) {
    project.fits = [...project.fits.filter(({ number }) => number !== fit.number), fit];
    later();
  },
  classes: takeClasses,
  error: (sentence) => say(sentence, "error"),
};

// ---- keys ----

const KEYS = [
  // keys, what they do, function; null: for the list of keys only
  [["1 … 9", "Shift+1 … 9"], "choose a class, with Shift 10 to 18", null],
  [["b"], "brush; the right button erases", () => setTool("brush")],
  [["e"], "eraser", () => setTool("eraser")],
  [["p"], "polygon; Enter closes it, Backspace removes a corner", () => setTool("polygon")],
  [["s"], "accept a segment: a click paints the predicted region", () => setTool("segment")],
  [["m"], "move the image; so does holding space, or the middle button", () => setTool("pan")],
  [["["], "smaller brush", () => setSize(Math.min(painting.size - 1, painting.size / 1.25) | 0)],
  [["]"], "larger brush", () => setSize(Math.ceil(painting.size * 1.25))],
  [["c", "Alt+click"], "choose the class under the pointer", () => painting.pick(pointer)],
  [["Ctrl+z"], "undo", undo],
  [["Ctrl+Shift+z", "Ctrl+y"], "redo", redo],
  [["Escape"], "take back the stroke or polygon that is not finished", escape],
  [["Wheel"], "zoom at the pointer", null],
  [["+", "="], "zoom in", () => zoom(1.25)],
  [["-"], "zoom out", () => zoom(0.8)],
  [["0"], "show the whole image", () => canvas.fit()],
  [["t"], "show or hide strokes", () => toggle("strokes")],
  [["r"], "show or hide the prediction", () => toggle("prediction")],
  [["u"], "show the uncertainty instead of the prediction, or hide it", () => toggle("uncertainty")],
  [["v"], "image, strokes, prediction and uncertainty side by side", () => setSides(!canvas.sides)],
  [["f"], "fit", () => attempt(fit)],
  [["n"], "go to the most uncertain region", () => attempt(next)],
  [["a"], "accept the image, or take that back", () => attempt(accept)],
  [["PageDown"], "next image of the list", () => openNeighbour(1)],
  [["PageUp"], "previous image of the list", () => openNeighbour(-1)],
  [["?"], "these keys", () => $("keys").showModal()],
];
function openNeighbour(distance) {
  const image = list.neighbour(distance);
  if (image) open(image.index);
}

function zoom(factor) {
  const box = $("canvas").getBoundingClientRect();
  canvas.zoom(factor, box.left + box.width / 2, box.top + box.height / 2);
}

function escape() {
  if (tools.cancel()) return;
  canvas.outline = null;
  canvas.schedule();
}

// ---- start ----

const style = getComputedStyle(document.documentElement);
const canvas = new Canvas($("canvas"), $("marks"), () => ({
  surround: style.getPropertyValue("--surround"),
}));
const images = new OpenImages(project, {
  say, shown, update, connection: () => showConnection(), busy: () => tools.busy, again: refresh,
  leave: () => tools.cancel(),
});
const tools = new Tools(canvas, painting);
const list = new ImageList($("list"), $("rows"), open);

function connect() {
  const click = (id, action) => $(id).addEventListener("click", action);
  click("undo", undo);
  click("redo", redo);
  click("whole", () => canvas.fit());
  click("fit", () => attempt(fit));
  click("next", () => attempt(next));
  click("accept", () => attempt(accept));
  click("export", () => attempt(exportAll));
  click("help", () => $("keys").showModal());
  click("copy", copyCommand);
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => setTool(button.dataset.tool));
  }
  for (const box of document.querySelectorAll("[data-layer]")) {
    box.addEventListener("change", () => toggle(box.dataset.layer));
  }
  $("sides").addEventListener("change", () => setSides($("sides").checked));
  $("size").addEventListener("input", () => setSize(sizeAt($("size").value)));
  $("opacity").addEventListener("input", () => {
    canvas.opacity = $("opacity").value / 100;
    canvas.redraw();
  });
  for (const id of ["filter", "order"]) $(id).addEventListener("input", later);
  $("add").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(() => addClass($("name").value));
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button, input[type=range], input[type=checkbox]");
    if (event.detail && button && !button.closest("dialog")) button.blur(); // keys are for tools
  });
  document.addEventListener("pointerdown", () => delete document.body.dataset.tabbed);
  listenToKeys(KEYS, $("key-rows"), { tools, choose, released: showTools });
  window.addEventListener("beforeunload", (event) => {
    if (images.queue.waiting.length) event.preventDefault();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => canvas.redraw());
}

connect();
setSize(20);
showTools();
showConnection();
follow(events);
