// Draws an image with its maps: pan, zoom, panes. Only the changed rectangle is drawn again.

import { clipped, isEmpty, joined } from "./planes.js";

const TILE = 512; // pixels; small enough that a changed tile is sent to the GPU within a frame
const MAX_SCALE = 40; // screen pixels per pixel of the image
const GAP = 2; // screen pixels between panes

/** 256 colours as ImageData stores them: rows of [r, g, b, alpha]. */
export function lookupTable(colours) {
  const table = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(table.buffer);
  colours.forEach((colour, id) => bytes.set(colour, 4 * id));
  return table;
}

/** A coloured copy of a plane, in tiles; those where nothing was ever painted do not exist. */
export class Layer {
  /** edged: pixels beside those of another value are darker, as an outline. */
  constructor(width, height, edged = false) {
    Object.assign(this, { width, height, edged });
    this.columns = Math.ceil(width / TILE);
    this.tiles = new Array(this.columns * Math.ceil(height / TILE)).fill(null);
  }

  /** Colours the rectangle again. table: Uint32Array(256), see lookupTable. */
  update(plane, table, rect = { left: 0, top: 0, right: this.width, bottom: this.height }) {
    const reach = this.edged ? 1 : 0; // a changed pixel can be the edge of its neighbours
    this.within(grown(rect, reach), (number, tile, part) => {
      const pixels = this.coloured(plane, table, part);
      if (!this.tiles[number] && isBlank(pixels)) return;
      this.tiles[number] ??= newTile(tile.right - tile.left, tile.bottom - tile.top);
      const bytes = new Uint8ClampedArray(pixels.buffer);
      const data = new ImageData(bytes, part.right - part.left, part.bottom - part.top);
      this.tiles[number].putImageData(data, part.left - tile.left, part.top - tile.top);
    });
  }

  coloured(plane, table, { left, top, right, bottom }) {
    const pixels = new Uint32Array((right - left) * (bottom - top));
    let target = 0;
    for (let y = top; y < bottom; y++) {
      for (let p = y * this.width + left; p < y * this.width + right; p++, target++) {
        const colour = table[plane[p]];
        pixels[target] = colour && this.edged && this.isEdge(plane, p, y) ? darker(colour) : colour;
      }
    }
    return pixels;
  }

  isEdge(plane, p, y) {
    const [id, width] = [plane[p], this.width];
    const x = p - y * width;
    return (
      (x > 0 && plane[p - 1] !== id) ||
      (x < width - 1 && plane[p + 1] !== id) ||
      (y > 0 && plane[p - width] !== id) ||
      (y < this.height - 1 && plane[p + width] !== id)
    );
  }

  /** Calls visit(number, rectangle of the tile, its part inside `rect`). */
  within(rect, visit) {
    const inside = clipped(rect, this.width, this.height);
    if (isEmpty(inside)) return;
    for (let row = Math.floor(inside.top / TILE); row * TILE < inside.bottom; row++) {
      for (let column = Math.floor(inside.left / TILE); column * TILE < inside.right; column++) {
        const tile = {
          left: column * TILE,
          top: row * TILE,
          right: Math.min(this.width, (column + 1) * TILE),
          bottom: Math.min(this.height, (row + 1) * TILE),
        };
        visit(row * this.columns + column, tile, common(tile, inside));
      }
    }
  }
}

function isBlank(pixels) {
  for (let i = 0; i < pixels.length; i++) if (pixels[i]) return false;
  return true;
}

/** Half of red, green and blue of an opaque pixel of ImageData. */
const darker = (colour) => (((colour & 0xfefefe) >>> 1) | 0xff000000) >>> 0;

function grown({ left, top, right, bottom }, reach) {
  return { left: left - reach, top: top - reach, right: right + reach, bottom: bottom + reach };
}

function newTile(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas.getContext("2d", { willReadFrequently: true });
}

/**
 * The canvas. What it shows is set by these fields, followed by redraw():
 *   doc      {width, height, levels: [ImageBitmap, half of it, ...], layers: {name: Layer}}
 *   shown    names of the layers over the image
 *   opacity  of the layer "prediction", 0..1
 *   sides    true: four panes side by side
 *   outline  {x, y, width, height} or null;   shape: corners of an unfinished polygon;   brush
 */
export class Canvas {
  constructor(element, overlay, colours) {
    Object.assign(this, { element, overlay, colours });
    this.context = element.getContext("2d", { alpha: false });
    this.marks = overlay.getContext("2d");
    this.doc = null;
    this.shown = new Set(["strokes", "prediction"]);
    this.opacity = 0.5;
    this.sides = false;
    this.outline = null;
    this.shape = [];
    this.brush = null; // {x, y, size} in pixels of the image
    this.scale = 1; // screen pixels per pixel of the image
    this.origin = { x: 0, y: 0 }; // of the image, in screen pixels of a pane
    this.fitted = true;
    this.panes = [];
    this.stale = true; // everything has to be drawn again, not only the `dirty` of panes
    this.waiting = false;
    this.onDrawn = () => {};
    new ResizeObserver(() => this.resize()).observe(element);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const box = this.element.getBoundingClientRect();
    for (const canvas of [this.element, this.overlay]) {
      canvas.width = Math.max(1, Math.round(box.width * ratio));
      canvas.height = Math.max(1, Math.round(box.height * ratio));
    }
    this.ratio = ratio;
    this.arrange();
  }

  /** Sets the panes; keeps the centre of what was shown. */
  arrange() {
    const old = this.panes[0];
    const middle = old && this.imagePoint(old, old.x + old.width / 2, old.y + old.height / 2);
    this.panes = this.sides ? this.fourPanes() : [this.pane("", 0, 0, 1, 1, this.shown)];
    if (this.fitted || !middle || !this.doc) this.fit();
    else this.centre(middle);
  }

  fourPanes() {
    const { width, height } = this.element;
    const image = this.doc ? this.doc.width / this.doc.height : 1;
    const [columns, rows] = [[1, 4], [2, 2], [4, 1]].sort(
      (a, b) => fitScale(b, image, width, height) - fitScale(a, image, width, height),
    )[0];
    const names = ["image", "strokes", "prediction", "uncertainty"];
    return names.map((name, i) =>
      this.pane(name, i % columns, Math.floor(i / columns), columns, rows, new Set([name])),
    );
  }

  pane(title, column, row, columns, rows, layers) {
    const [width, height] = [this.element.width / columns, this.element.height / rows];
    const x = Math.round(column * width) + (column ? GAP : 0);
    const y = Math.round(row * height) + (row ? GAP : 0);
    return {
      title, layers, x, y,
      width: Math.round((column + 1) * width) - x,
      height: Math.round((row + 1) * height) - y,
    };
  }

  /** The pane under a point of the window, and the point in pixels of the image. */
  locate(clientX, clientY, within = null) {
    const box = this.element.getBoundingClientRect();
    const x = (clientX - box.left) * this.ratio;
    const y = (clientY - box.top) * this.ratio;
    const inside = (p) => x >= p.x && y >= p.y && x < p.x + p.width && y < p.y + p.height;
    const pane = within || this.panes.find(inside) || this.panes[0];
    return { pane, ...this.imagePoint(pane, x, y) };
  }

  imagePoint(pane, x, y) {
    return {
      x: (x - pane.x - this.origin.x) / this.scale,
      y: (y - pane.y - this.origin.y) / this.scale,
    };
  }

  smallestScale() {
    const pane = this.panes[0];
    return Math.min(pane.width / this.doc.width, pane.height / this.doc.height);
  }

  /** Shows the whole image. */
  fit() {
    if (!this.doc || !this.panes.length) return;
    this.scale = Math.min(this.smallestScale() * 0.98, MAX_SCALE);
    this.fitted = true;
    this.centre({ x: this.doc.width / 2, y: this.doc.height / 2 });
  }

  /** Shows a rectangle of the image with what surrounds it. */
  show({ x, y, width, height }) {
    const pane = this.panes[0];
    const scale = Math.min(pane.width / (3 * width), pane.height / (3 * height));
    this.scale = Math.max(this.smallestScale() * 0.98, Math.min(scale, 8));
    this.fitted = false;
    this.centre({ x: x + width / 2, y: y + height / 2 });
  }

  /** Places a point of the image in the middle, or as near as leaves no space beside the image. */
  centre(point) {
    const pane = this.panes[0];
    const place = (middle, extent, space) => {
      const [length, start] = [extent * this.scale, space / 2 - middle * this.scale];
      if (length <= space) return (space - length) / 2;
      return Math.min(0, Math.max(space - length, start));
    };
    this.origin.x = place(point.x, this.doc.width, pane.width);
    this.origin.y = place(point.y, this.doc.height, pane.height);
    this.redraw();
  }

  pan(dx, dy) {
    if (!this.doc) return;
    this.origin.x += dx * this.ratio;
    this.origin.y += dy * this.ratio;
    this.keepVisible();
  }

  /** Scales by a factor; the pixel under the point of the window stays there. */
  zoom(factor, clientX, clientY) {
    if (!this.doc) return;
    const { pane, x, y } = this.locate(clientX, clientY);
    const lowest = Math.min(this.smallestScale() * 0.5, 1);
    const scale = Math.max(lowest, Math.min(MAX_SCALE, this.scale * factor));
    const screen = { x: x * this.scale + this.origin.x, y: y * this.scale + this.origin.y };
    this.scale = scale;
    this.origin.x = screen.x - x * scale;
    this.origin.y = screen.y - y * scale;
    this.fitted = false;
    this.keepVisible(pane);
  }

  /** Keeps some of the image inside the panes. */
  keepVisible(pane = this.panes[0]) {
    const margin = 60 * this.ratio;
    const [w, h] = [this.doc.width * this.scale, this.doc.height * this.scale];
    this.origin.x = Math.min(pane.width - margin, Math.max(margin - w, this.origin.x));
    this.origin.y = Math.min(pane.height - margin, Math.max(margin - h, this.origin.y));
    this.fitted = false;
    this.redraw();
  }

  /** Draws everything in the next frame. */
  redraw() {
    this.stale = true;
    this.schedule();
  }

  /** Draws a rectangle of the image in the next frame. */
  redrawRect(rect) {
    for (const pane of this.panes) {
      const seen = common(this.screenRect(pane, grown(rect, 1), 2), bounds(pane));
      if (!isEmpty(seen)) pane.dirty = joined(pane.dirty || seen, seen);
    }
    this.schedule();
  }

  screenRect(pane, rect, margin = 0) {
    const left = pane.x + this.origin.x;
    const top = pane.y + this.origin.y;
    return {
      left: Math.round(left + rect.left * this.scale) - margin,
      top: Math.round(top + rect.top * this.scale) - margin,
      right: Math.round(left + rect.right * this.scale) + margin,
      bottom: Math.round(top + rect.bottom * this.scale) + margin,
    };
  }

  /** Draws in the next frame what has changed by then. */
  schedule() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.onDrawn();
      this.draw();
      this.drawMarks();
    });
  }

  draw() {
    const { width, height } = this.element;
    this.context.fillStyle = this.colours().surround;
    if (this.stale) this.context.fillRect(0, 0, width, height); // also between the panes
    for (const pane of this.panes) {
      const rect = this.stale ? bounds(pane) : pane.dirty;
      pane.dirty = null;
      if (rect && this.doc?.levels.length) this.drawPane(pane, rect);
    }
    this.stale = false;
  }

  drawPane(pane, rect) {
    const { context, doc } = this;
    context.save();
    clip(context, rect);
    context.fillStyle = this.colours().surround;
    context.fillRect(rect.left, rect.top, rect.right - rect.left, rect.bottom - rect.top);
    const to = this.screenRect(pane, { left: 0, top: 0, right: doc.width, bottom: doc.height });
    const sides = [to.left, to.top, to.right - to.left, to.bottom - to.top];
    const level = Math.min(doc.levels.length - 1, Math.max(0, Math.floor(-Math.log2(this.scale))));
    context.imageSmoothingEnabled = this.scale < 2;
    context.drawImage(doc.levels[level], ...sides);
    const uncertain = pane.layers.has("uncertainty") && (pane.title || doc.layers.uncertainty);
    if (uncertain) {
      context.fillStyle = "rgba(0, 0, 0, 0.6)";
      context.fillRect(...sides);
    }
    context.imageSmoothingEnabled = this.scale < 1;
    for (const name of ["prediction", "uncertainty", "strokes"]) {
      if (!pane.layers.has(name) || !doc.layers[name]) continue;
      if (name === "prediction" && uncertain) continue; // the two colours mixed tell nothing
      context.globalAlpha = name !== "prediction" ? 0.9 : pane.title ? 0.8 : this.opacity;
      this.drawLayer(doc.layers[name], pane, rect);
    }
    context.globalAlpha = 1;
    if (pane.title) this.drawTitle(pane);
    context.restore();
  }

  drawLayer(layer, pane, rect) {
    const from = this.imagePoint(pane, rect.left - 2, rect.top - 2);
    const end = this.imagePoint(pane, rect.right + 2, rect.bottom + 2);
    const seen = {
      left: Math.floor(from.x), top: Math.floor(from.y),
      right: Math.ceil(end.x), bottom: Math.ceil(end.y),
    };
    layer.within(seen, (number, tile) => {
      if (!layer.tiles[number]) return;
      const to = this.screenRect(pane, tile); // rounded, so that tiles meet without a seam
      const size = [to.right - to.left, to.bottom - to.top];
      this.context.drawImage(layer.tiles[number].canvas, to.left, to.top, ...size);
    });
  }

  drawTitle(pane) {
    const { context, ratio } = this;
    const none = this.doc.layers[pane.title] || pane.title === "image" ? "" : ": none yet";
    const text = pane.title + none;
    context.font = `${12 * ratio}px system-ui, sans-serif`;
    const width = context.measureText(text).width + 12 * ratio;
    context.fillStyle = "rgba(0, 0, 0, 0.65)";
    context.fillRect(pane.x, pane.y, width, 20 * ratio);
    context.fillStyle = "white";
    context.textBaseline = "middle";
    context.fillText(text, pane.x + 6 * ratio, pane.y + 10.5 * ratio);
  }

  /** Draws brush, polygon and outline over everything. */
  drawMarks() {
    const { marks, overlay, scale, ratio } = this;
    marks.clearRect(0, 0, overlay.width, overlay.height);
    if (!this.doc) return;
    for (const pane of this.panes) {
      marks.save();
      clip(marks, bounds(pane));
      marks.translate(pane.x + this.origin.x, pane.y + this.origin.y);
      const twice = (path, dash = []) => {
        marks.beginPath();
        path();
        marks.setLineDash([]);
        marks.lineWidth = 3 * ratio;
        marks.strokeStyle = "rgba(0, 0, 0, 0.8)";
        marks.stroke();
        marks.setLineDash(dash);
        marks.lineWidth = 1.5 * ratio;
        marks.strokeStyle = "white";
        marks.stroke();
      };
      if (this.outline) {
        const { x, y, width, height } = this.outline;
        const sides = [x, y, width, height].map((side) => side * scale);
        twice(() => marks.rect(...sides), [6 * ratio, 4 * ratio]);
      }
      if (this.shape.length) {
        twice(() => this.shape.forEach(({ x, y }) => marks.lineTo(x * scale, y * scale)));
      }
      if (this.brush) {
        const { x, y, size } = this.brush;
        const radius = Math.max((size / 2) * scale, 1.5 * ratio);
        twice(() => marks.arc(x * scale, y * scale, radius, 0, 2 * Math.PI));
      }
      marks.restore();
    }
  }
}

const bounds = ({ x, y, width, height }) => ({
  left: x, top: y, right: x + width, bottom: y + height,
});

/** The rectangle that two rectangles share. */
function common(a, b) {
  return {
    left: Math.max(a.left, b.left),
    top: Math.max(a.top, b.top),
    right: Math.min(a.right, b.right),
    bottom: Math.min(a.bottom, b.bottom),
  };
}

function clip(context, { left, top, right, bottom }) {
  context.beginPath();
  context.rect(left, top, right - left, bottom - top);
  context.clip();
}

/** The scale of an image of that aspect in one of columns x rows panes. */
function fitScale([columns, rows], aspect, width, height) {
  return Math.min(width / columns / aspect, height / rows);
}
