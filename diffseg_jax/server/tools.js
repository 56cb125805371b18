// Pointers, pen and touch on the canvas: brush, eraser, polygon, accepting a segment, pan and zoom.

import { UNPAINTED, acceptSegment, clipped, fillPolygon, joined, snapped, sweep } from "./planes.js";

const CLOSE = 10; // screen pixels to the first corner of a polygon that close it

/**
 * canvas   a Canvas
 * page     {tool, size, classId: what the next stroke does; changed(rect): the plane has changed;
 *          finished(rect): a stroke is complete; cancelled(rect); say(sentence); hover(point)}
 */
export class Tools {
  constructor(canvas, page) {
    Object.assign(this, { canvas, page });
    this.pointers = new Map(); // of touches: id -> event
    this.stroke = null; // {id, pane, last, rect, size, pointer}
    this.panning = null; // the pointer that moves the image
    this.holdsSpace = false;
    this.corners = []; // of the polygon that is not closed
    this.rect = null; // what the stroke has changed since the last frame
    canvas.onDrawn = () => this.flush();
    const on = (name, handler) => canvas.element.addEventListener(name, handler);
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.move(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", (event) => this.lost(event));
    on("pointerleave", () => this.leave());
    on("contextmenu", (event) => event.preventDefault());
    on("dblclick", () => this.closeShape());
    const wheel = (event) => this.wheel(event);
    canvas.element.addEventListener("wheel", wheel, { passive: false });
  }

  get busy() {
    return Boolean(this.stroke);
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0018; // ctrl: a pinch on a touchpad
    this.canvas.zoom(Math.exp(-event.deltaY * lines * speed), event.clientX, event.clientY);
  }

  down(event) {
    const { canvas, page } = this;
    if (!canvas.doc?.ids) return;
    canvas.element.setPointerCapture(event.pointerId);
    canvas.element.focus({ preventScroll: true });
    if (event.pointerType === "touch") {
      this.pointers.set(event.pointerId, event);
      if (this.pointers.size === 2) return this.beginPinch();
      if (this.pointers.size > 2) return;
    }
    if (event.button === 1 || this.holdsSpace || page.tool === "pan") {
      event.preventDefault();
      this.panning = event;
      return;
    }
    if (this.stroke || (event.button !== 0 && event.button !== 2 && event.button !== 5)) return;
    const point = canvas.locate(event.clientX, event.clientY);
    if (event.altKey) return page.pick(point);
    if (page.tool === "polygon") return this.corner(event, point);
    if (page.tool === "segment") return this.accept(point);
    const erases = page.tool === "eraser" || event.button !== 0;
    if (!erases && page.classId === null) return page.say("Add a class first, then paint it.");
    this.begin(event, point, erases ? UNPAINTED : page.classId);
  }

  begin(event, point, id) {
    const last = snapped(point, this.page.size);
    const size = this.page.size;
    this.stroke = { id, size, last, pane: point.pane, pointer: event.pointerId, rect: null };
    this.paint(last);
  }

  move(event) {
    if (this.pointers.has(event.pointerId)) {
      const old = this.pointers.get(event.pointerId);
      this.pointers.set(event.pointerId, event);
      if (this.pointers.size === 2) return this.pinch(event, old);
    }
    if (this.panning?.pointerId === event.pointerId) {
      const old = this.panning;
      this.panning = event;
      return this.canvas.pan(event.clientX - old.clientX, event.clientY - old.clientY);
    }
    const point = this.canvas.doc && this.canvas.locate(event.clientX, event.clientY);
    if (!point) return;
    if (this.stroke?.pointer === event.pointerId) {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) {
        const at = this.canvas.locate(each.clientX, each.clientY, this.stroke.pane);
        this.paint(snapped(at, this.stroke.size));
      }
    }
    this.page.hover(point);
    this.mark(event, point);
  }

  /** Continues the stroke to a point. */
  paint(point) {
    const { stroke, canvas } = this;
    const { ids, width, height } = canvas.doc;
    const rect = sweep(ids, width, height, stroke.last, point, stroke.size, stroke.id);
    stroke.last = point;
    if (rect.left >= rect.right || rect.top >= rect.bottom) return;
    stroke.rect = stroke.rect ? joined(stroke.rect, rect) : rect;
    this.rect = this.rect ? joined(this.rect, rect) : rect;
    canvas.schedule();
  }

  /** Once per frame: shows what was painted since the last one. */
  flush() {
    if (!this.rect) return;
    const rect = this.rect;
    this.rect = null;
    this.page.changed(rect);
  }

  /** The ring of the brush, or the line to the next corner. */
  mark(event, point) {
    const { canvas, page } = this;
    const painting = page.tool === "brush" || page.tool === "eraser";
    const hides = !painting || event.pointerType === "touch" || this.holdsSpace;
    canvas.brush = hides ? null : { ...snapped(point, page.size), size: page.size };
    if (page.tool === "polygon" && this.corners.length) canvas.shape = [...this.corners, point];
    canvas.schedule();
  }

  leave() {
    this.canvas.brush = null;
    this.canvas.schedule();
    this.page.hover(null);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.panning?.pointerId === event.pointerId) this.panning = null;
    if (this.stroke?.pointer !== event.pointerId) return;
    const { rect } = this.stroke;
    this.stroke = null;
    this.flush();
    if (rect) this.page.finished(rect);
  }

  lost(event) {
    this.pointers.delete(event.pointerId);
    if (this.panning?.pointerId === event.pointerId) this.panning = null;
    if (this.stroke?.pointer === event.pointerId) this.cancel();
  }

  /** Takes back the stroke or the polygon that is not finished; false if there is none. */
  cancel() {
    const open = this.stroke || this.corners.length;
    const rect = this.stroke?.rect;
    this.stroke = this.rect = null;
    this.corners = this.canvas.shape = [];
    if (rect) this.page.cancelled(rect);
    this.canvas.schedule();
    return Boolean(open);
  }

  corner(event, point) {
    if (event.button !== 0) return this.closeShape();
    if (this.page.classId === null) return this.page.say("Add a class first, then paint it.");
    const { scale, ratio } = this.canvas;
    const near = ({ x, y }) => Math.hypot(x - point.x, y - point.y) * scale < CLOSE * ratio;
    if (this.corners.length > 2 && near(this.corners[0])) return this.closeShape();
    if (event.detail > 1 && this.corners.length) return; // the second press of a double click
    this.corners.push({ x: point.x, y: point.y });
    this.canvas.shape = [...this.corners];
    this.canvas.schedule();
  }

  removeCorner() {
    this.corners.pop();
    this.canvas.shape = [...this.corners];
    this.canvas.schedule();
  }

  closeShape() {
    const corners = this.corners;
    this.corners = this.canvas.shape = [];
    this.canvas.schedule();
    if (corners.length < 3) return;
    const { ids, width, height } = this.canvas.doc;
    const rect = fillPolygon(ids, width, height, corners, this.page.classId);
    this.page.changed(rect);
    this.page.finished(rect);
  }

  accept(point) {
    const { prediction, ids, width, height } = this.canvas.doc;
    const [x, y] = [Math.floor(point.x), Math.floor(point.y)];
    if (!prediction) {
      return this.page.say("This image has no prediction yet: paint a few strokes and press Fit.");
    }
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    const rect = clipped(acceptSegment(ids, prediction, width, height, x, y), width, height);
    this.page.changed(rect);
    this.page.finished(rect);
  }

  beginPinch() {
    this.cancel();
    this.panning = null;
  }

  pinch(event, old) {
    const other = [...this.pointers.values()].find((each) => each.pointerId !== event.pointerId);
    const apart = (each) => Math.hypot(each.clientX - other.clientX, each.clientY - other.clientY);
    const half = { x: (event.clientX - old.clientX) / 2, y: (event.clientY - old.clientY) / 2 };
    this.canvas.pan(half.x, half.y);
    const middle = [(event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2];
    this.canvas.zoom(apart(event) / Math.max(1, apart(old)), ...middle);
  }
}
