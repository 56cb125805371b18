// The list of images, the classes, and the chart of fits: data in, elements out.

const ROW = 60; // pixels; as in page.css
const KEPT = 300; // rows that are kept with their thumbnails after they were scrolled away

/** An element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

/** The images in the order of the list; accepted ones are the last among the uncertain. */
export function sorted(images, order, filter) {
  const wanted = filter.trim().toLowerCase();
  const shown = images.filter((image) => image.name.toLowerCase().includes(wanted));
  if (order === "uncertain") {
    const rank = (image) => (image.accepted ? -2 : (image.score ?? -1));
    shown.sort((a, b) => rank(b) - rank(a) || a.index - b.index);
  }
  return shown;
}

/**
 * A list of any length, of which only the visible rows are elements.
 * open(index, clicked) is called for the image that is chosen.
 */
export class ImageList {
  constructor(scroller, rows, open) {
    Object.assign(this, { scroller, rows, open });
    this.images = [];
    this.current = -1; // index of the open image
    this.newest = 0; // number of the last fit
    this.elements = new Map(); // index of an image -> row, the oldest first
    this.waiting = false;
    scroller.addEventListener("scroll", () => this.later(), { passive: true });
    scroller.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.later()).observe(scroller);
  }

  show(images, current) {
    Object.assign(this, { images, current });
    this.rows.style.height = `${images.length * ROW}px`;
    this.later();
  }

  /** Scrolls to the open image. */
  reveal() {
    const place = this.images.findIndex((image) => image.index === this.current) * ROW;
    const { scrollTop, clientHeight } = this.scroller;
    if (place < scrollTop || place + ROW > scrollTop + clientHeight) {
      this.scroller.scrollTop = place - clientHeight / 2 + ROW / 2;
    }
  }

  /** The image `step` places after the open one, if there is one. */
  neighbour(step) {
    const place = this.images.findIndex((image) => image.index === this.current);
    return this.images[Math.max(0, Math.min(this.images.length - 1, place + step))];
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const image = this.neighbour(step);
    if (image) this.open(image.index);
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const { scrollTop, clientHeight } = this.scroller;
    const first = Math.max(0, Math.floor(scrollTop / ROW) - 4);
    const last = Math.min(this.images.length, Math.ceil((scrollTop + clientHeight) / ROW) + 4);
    const visible = new Set();
    for (let place = first; place < last; place++) {
      const row = this.row(this.images[place], place);
      visible.add(row);
      if (row.parentNode !== this.rows) this.rows.append(row);
    }
    for (const row of [...this.rows.children]) if (!visible.has(row)) row.remove();
    for (const [index, row] of this.elements) {
      if (this.elements.size <= KEPT) break;
      if (!visible.has(row)) this.elements.delete(index);
    }
    this.scroller.setAttribute("aria-activedescendant", `image-${this.current}`);
  }

  row(image, place) {
    const row = this.elements.get(image.index) ?? this.newRow(image);
    row.style.transform = `translateY(${place * ROW}px)`;
    row.setAttribute("aria-selected", String(image.index === this.current));
    row.setAttribute("aria-posinset", String(place + 1));
    row.setAttribute("aria-setsize", String(this.images.length));
    const text = stateOf(image, this.newest);
    const hasScore = image.score !== null && !image.accepted;
    const score = !hasScore ? "" : percent(image.score, image.score < 0.0995 ? 1 : 0);
    const [, words] = row.children;
    words.children[1].firstChild.textContent = text;
    words.children[1].lastChild.textContent = score;
    row.classList.toggle("accepted", image.accepted);
    words.children[1].lastChild.title = score && `${score} of the pixels are expected to be wrong`;
    const error = score && `, expected error ${score}`;
    row.setAttribute("aria-label", `${image.name}: ${text || "new"}${error}`);
    return row;
  }

  newRow(image) {
    const thumbnail = make("img", {
      src: `api/images/${image.index}?side=160`, alt: "", width: 64, height: 48,
      decoding: "async", draggable: false,
    });
    const state = make("span", { className: "state" }, make("span"), make("b"));
    const name = make("span", { className: "name", title: image.name }, make("bdi", {}, image.name));
    const words = make("span", { className: "words" }, name, state);
    const row = make("div", { role: "option", id: `image-${image.index}` }, thumbnail, words);
    row.addEventListener("click", () => this.open(image.index, true));
    this.elements.set(image.index, row);
    return row;
  }
}

/** accepted, painted or predicted; an expected error beside it says that it is predicted, too. */
export function stateOf(image, newest) {
  if (image.accepted) return "✓ accepted";
  if (image.counts.some((count) => count > 0)) return "painted";
  if (image.fit && image.fit < newest) return `predicted by fit ${image.fit}`;
  return image.fit ? "predicted" : "";
}

const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 2 });

const NO_IOU =
  "No IoU yet: the last fit knew less than two strokes of this class, and none can be held out " +
  "when no other one is left to learn from. Paint a second one elsewhere, and fit again.";

/**
 * The rows of the classes: key, colour, name, painted pixels, IoU of the last fit.
 * choose(id) is called for the class that is clicked.
 */
export function drawClasses(list, classes, counts, ious, chosen, choose) {
  while (list.children.length > classes.length) list.lastChild.remove();
  classes.forEach((each, id) => {
    const row = list.children[id] ?? list.appendChild(classRow(id, choose));
    const [button] = row.children;
    const [key, swatch, name, count, iou] = button.children;
    key.textContent = keyOf(id);
    swatch.style.background = `rgb(${each.colour.join(",")})`;
    name.textContent = name.title = each.name;
    count.textContent = counts[id] ? SHORT.format(counts[id]) : "–";
    const isMeasured = ious[id] !== undefined && ious[id] !== null;
    const painted = counts[id] > 0 && ious.some((each) => each !== null);
    iou.textContent = isMeasured ? percent(ious[id]) : painted ? "–" : "";
    iou.title = isMeasured ? "IoU on held-out strokes" : NO_IOU;
    button.setAttribute("aria-pressed", String(id === chosen));
    const measured = isMeasured ? `, IoU ${iou.textContent}` : "";
    const label = `${each.name}, ${(counts[id] ?? 0).toLocaleString("en")} pixels${measured}`;
    button.setAttribute("aria-label", label);
  });
}

function classRow(id, choose) {
  const parts = ["key", "swatch", "name", "count", "iou"];
  const spans = parts.map((className) => make(className === "key" ? "kbd" : "span", { className }));
  const button = make("button", { type: "button" }, ...spans);
  button.addEventListener("click", () => choose(id));
  return make("li", {}, button);
}

/** 1 to 9, then Shift+1 to Shift+9; "" for later classes. */
function keyOf(id) {
  if (id < 9) return String(id + 1);
  return id < 18 ? `⇧${id - 8}` : "";
}

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

const WIDTH = 216; // of the chart, pixels
const HEIGHT = 72;

/** The mIoU of the fits that have one, as a line; nothing for less than two of them. */
export function drawChart(element, fits) {
  element.replaceChildren();
  const measured = fits.filter((fit) => fit.miou !== null).slice(-30);
  if (measured.length < 2) return;
  const values = measured.map((fit) => fit.miou);
  const low = Math.max(0, Math.min(...values) - 0.05);
  const high = Math.min(1, Math.max(...values) + 0.05);
  const x = (place) => 34 + (place / (values.length - 1)) * (WIDTH - 42);
  const y = (value) => HEIGHT - 8 - ((value - low) / (high - low)) * (HEIGHT - 18);
  const label = `mean IoU of the last ${values.length} fits, now ${percent(values.at(-1), 1)}`;
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const value of [low, high]) {
    svg.append(
      shape("line", { x1: 34, x2: WIDTH - 8, y1: y(value), y2: y(value), class: "axis" }),
      shape("text", { x: 30, y: y(value) + 3.5, class: "tick" }, percent(value)),
    );
  }
  const points = values.map((value, place) => `${x(place)},${y(value)}`);
  svg.append(shape("polyline", { points: points.join(" "), class: "curve" }));
  measured.forEach((fit, place) => {
    const dot = shape("circle", { cx: x(place), cy: y(fit.miou), r: 3, class: "dot" });
    const about = `fit ${fit.number}: ${percent(fit.miou, 1)} from ${SHORT.format(fit.pixels)} pixels`;
    dot.append(shape("title", {}, about));
    svg.append(dot);
  });
  element.append(svg);
}

/** One sentence about whether more strokes still help. */
export function adviceOf(fits) {
  const values = fits.map((fit) => fit.miou).filter((miou) => miou !== null);
  if (values.length < 4) return "";
  const gain = values.at(-1) - Math.max(...values.slice(-4, -1).map((value) => value));
  const span = Math.max(...values.slice(-4)) - Math.min(...values.slice(-4));
  if (span < 0.01) return "The last fits agree within a point: new strokes bring little.";
  return gain > 0 ? "Still improving." : "The last fit is not better than those before it.";
}
