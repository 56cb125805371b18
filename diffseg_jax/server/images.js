// The open images: their planes, what was painted, undo, and how they agree with the server.

import { Layer, lookupTable } from "./canvas.js";
import { PatchQueue, Problem, request, tagIn } from "./connection.js";
import { apply, difference, inverse, readGreyPng, rectOf } from "./planes.js";

const MAX_OPEN = 16e6; // pixels of the images that are kept in memory, at some 20 bytes each
const MAX_UNDO = 200; // strokes
const MAX_UNDO_BYTES = 200e6;
const MAX_PIXELS = 1.5e6; // of the smallest copy of an image
const UNCERTAIN = lookupTable(
  Array.from({ length: 256 }, (_, error) => [
    213, 94, 0, Math.min(230, Math.round(1.25 * error)), // vermillion, as in figures of errors
  ]),
);

/**
 * An open image ("doc") is an object with
 *   index, key, name, width, height, revision    as the server has them; the key stays the same
 *   ids, shadow                         Uint8Array planes; shadow lacks the unfinished stroke
 *   history                             {undo, redo}: patches
 *   prediction, uncertainty, fit        planes or null, and the number of their fit
 *   levels                              the image as ImageBitmap, and halves of it for zooming out
 *   layers                              {strokes, prediction, uncertainty}: Layer
 *
 * project  {images}: IMAGE of the server by index
 * hooks    say(sentence, kind); shown(doc, rect): the pixels of the current image have changed, all
 *          of them without rect; update(IMAGE); connection(): the queue has changed; busy();
 *          leave(): the current image is about to be another one, so a stroke on it ends
 */
export class OpenImages {
  constructor(project, hooks) {
    Object.assign(this, { project, hooks });
    this.docs = new Map(); // index -> doc, the one used last is the last
    this.histories = new Map(); // index -> {undo, redo, revision} of images that were closed
    this.current = null;
    this.table = lookupTable([]);
    this.opening = 0; // counts, so that the late response of an earlier image is not shown
    this.queue = new PatchQueue({
      changed: hooks.connection,
      again: hooks.again,
      saved: (doc, { revision, counts }) => {
        doc.revision = revision;
        hooks.update({ ...project.images[doc.index], revision, counts });
      },
      conflict: async (doc) => {
        const changed = await this.reload(doc);
        if (changed) {
          hooks.say("This image was painted in another tab: its labels were loaded again.");
        }
      },
      refused: async (doc, entry, sentence) => {
        await this.reload(doc, entry);
        hooks.say(sentence, "error");
      },
    });
  }

  /** Makes an image the current one; null if another one was asked for meanwhile. */
  async open(index) {
    const number = ++this.opening;
    const known = this.docs.get(index);
    const doc = known ?? (await this.load(index));
    if (number !== this.opening) return null;
    if (this.current && this.current !== doc) this.hooks.leave();
    this.docs.delete(index);
    this.docs.set(index, doc);
    this.current = doc;
    this.forget();
    return doc;
  }

  /** What else an opened image needs: a new prediction, new labels, and smaller copies. */
  async complete(doc) {
    const { fit, revision } = this.project.images[doc.index];
    if (doc.fit !== fit) await this.loadPrediction(doc);
    if (revision !== doc.revision && !this.queue.of(doc).length) await this.reload(doc);
    if (doc.levels.length === 1) await addLevels(doc);
  }

  async load(index) {
    const { key, name, width, height } = this.project.images[index];
    const image = request(`api/images/${index}`).then((response) => response.blob());
    const [labels, bitmap] = await Promise.all([loadLabels(index), image.then(createImageBitmap)]);
    if (labels.key !== key) throw new Problem("The images have changed: load the page again.");
    if (labels.data.length !== width * height || bitmap.width !== width) {
      throw new Problem("The size of this image has changed: start the command again.");
    }
    const kept = this.histories.get(index);
    const layers = { strokes: new Layer(width, height, true) };
    layers.strokes.update(labels.data, this.table);
    return {
      index, key, name, width, height, layers, levels: [bitmap], revision: labels.revision,
      ids: labels.data, shadow: labels.data.slice(),
      history: kept?.revision === labels.revision ? kept : { undo: [], redo: [] },
      prediction: null, uncertainty: null, fit: 0,
    };
  }

  /** Closes images that were not used for long, never one with changes that are not saved. */
  forget() {
    let pixels = 0;
    for (const { width, height } of this.docs.values()) pixels += width * height;
    for (const [index, doc] of this.docs) {
      if (pixels <= MAX_OPEN) return;
      if (doc === this.current || this.queue.of(doc).length) continue;
      pixels -= doc.width * doc.height;
      this.docs.delete(index);
      this.histories.set(index, { ...doc.history, revision: doc.revision });
      doc.levels.forEach((level) => level.close());
    }
  }

  /**
   * The command was started again with other images: finds the open ones by key, first under their
   * name. Closes those that are gone, and returns their names if they had unsaved changes.
   */
  renumber(images) {
    const open = [...this.docs.values()];
    const lost = new Set();
    this.docs.clear();
    this.histories.clear();
    for (const doc of open) {
      const same = images.filter(({ key, index }) => key === doc.key && !this.docs.has(index));
      const image = same.find(({ name }) => name === doc.name) ?? same[0];
      if (image) {
        Object.assign(doc, { index: image.index, name: image.name });
        this.docs.set(doc.index, doc);
        continue;
      }
      if (this.queue.of(doc).length) lost.add(doc.name);
      this.queue.waiting = this.queue.waiting.filter((entry) => entry.doc !== doc);
      if (doc !== this.current) continue;
      this.hooks.leave();
      this.current = null;
    }
    return [...lost];
  }

  /** Takes a new state of an image: loads what has changed, if it is open. */
  async heard(image) {
    const doc = this.docs.get(image.index);
    if (doc?.key !== image.key) return;
    if (doc.fit !== image.fit && doc === this.current) await this.loadPrediction(doc);
    const others = image.revision !== doc.revision && !this.queue.of(doc).length;
    if (others && !this.hooks.busy()) await this.reload(doc);
  }

  /**
   * Loads the labels of an open image again, and paints over them what the server does not have
   * yet, except the `refused` entry of the queue. True if somebody else has changed them. Asks for
   * the images again if its index is that of another one now.
   */
  async reload(doc, refused = null) {
    const { key, revision, data } = await loadLabels(doc.index);
    if (key !== doc.key) {
      await this.hooks.again();
      return false;
    }
    const { width, height, shadow, ids } = doc;
    const whole = { left: 0, top: 0, right: width, bottom: height };
    const unfinished = difference(shadow, ids, width, whole);
    const waiting = this.queue.waiting.filter((entry) => entry.doc === doc);
    waiting.toReversed().forEach(({ patch }) => apply(shadow, width, patch, patch.before));
    let changed = difference(shadow, data, width, whole);
    if (changed && waiting.length) { // it may have the first one, whose response was lost
      apply(shadow, width, waiting[0].patch, waiting[0].patch.after);
      changed = difference(shadow, data, width, whole);
    }
    doc.revision = revision;
    doc.history = { undo: [], redo: [] };
    ids.set(data);
    shadow.set(data);
    for (const entry of waiting) {
      apply(ids, width, entry.patch, entry.patch.after);
      const patch = entry === refused ? null : difference(shadow, ids, width, rectOf(entry.patch));
      if (!patch) {
        ids.set(shadow);
        this.queue.remove(entry);
        continue;
      }
      entry.patch = patch;
      doc.history.undo.push(patch);
      apply(shadow, width, patch, patch.after);
    }
    if (unfinished) apply(ids, width, unfinished, unfinished.after);
    doc.layers.strokes.update(ids, this.table);
    this.show(doc);
    return Boolean(changed);
  }

  async loadPrediction(doc) {
    const { fit } = this.project.images[doc.index];
    if (!fit || doc.loading === fit) return;
    doc.loading = fit;
    const get = async (name) => {
      const query = new URLSearchParams({ fit, key: doc.key });
      const response = await request(`api/images/${doc.index}/${name}?${query}`);
      return (await readGreyPng(await response.arrayBuffer())).data;
    };
    try {
      const [prediction, uncertainty] = await Promise.all([get("prediction"), get("uncertainty")]);
      if (fit > doc.fit) Object.assign(doc, { prediction, uncertainty, fit });
    } finally {
      doc.loading = 0;
    }
    this.colour(doc);
    this.show(doc);
  }

  /** Takes the colours of the classes: a list of [r, g, b]. */
  setColours(colours) {
    const table = lookupTable(colours.map((colour) => [...colour, 255]));
    if (table.every((value, id) => value === this.table[id])) return;
    this.table = table;
    for (const doc of this.docs.values()) {
      this.colour(doc);
      this.show(doc);
    }
  }

  /** Makes the layers of an open image from its planes. */
  colour({ width, height, layers, ids, prediction, uncertainty }) {
    layers.strokes.update(ids, this.table);
    if (!prediction) return;
    layers.prediction ??= new Layer(width, height);
    layers.prediction.update(prediction, this.table);
    layers.uncertainty ??= new Layer(width, height);
    layers.uncertainty.update(uncertainty, UNCERTAIN);
  }

  show(doc, rect) {
    if (doc === this.current) this.hooks.shown(doc, rect);
  }

  // ---- painting on the current image ----

  /** The plane has changed within a rectangle. */
  painted(rect) {
    this.current.layers.strokes.update(this.current.ids, this.table, rect);
    this.show(this.current, rect);
  }

  /** A stroke is complete: it can be undone, and is sent. */
  finish(rect) {
    const { shadow, ids, width, history } = this.current;
    const patch = difference(shadow, ids, width, rect);
    if (!patch) return;
    history.undo.push(patch);
    history.redo = [];
    shorten(history.undo);
    this.send(patch);
  }

  /** Takes back a stroke that is not complete. */
  cancel(rect) {
    const { shadow, ids, width } = this.current;
    const patch = difference(ids, shadow, width, rect);
    if (patch) apply(ids, width, patch, patch.after);
    this.painted(rect);
  }

  undo() {
    this.step("undo", "redo");
  }

  redo() {
    this.step("redo", "undo");
  }

  step(from, to) {
    const doc = this.current;
    const patch = doc?.history[from].pop();
    if (!patch) return;
    const back = from === "undo" ? inverse(patch) : patch;
    doc.history[to].push(patch);
    apply(doc.ids, doc.width, back, back.after);
    this.painted(rectOf(back));
    this.send(back);
  }

  send(patch) {
    apply(this.current.shadow, this.current.width, patch, patch.after);
    this.queue.add(this.current, patch);
  }
}

async function loadLabels(index) {
  const response = await request(`api/images/${index}/labels`);
  const { data } = await readGreyPng(await response.arrayBuffer());
  return { ...tagIn(response), data };
}

/** Adds smaller copies of a large image, which are drawn when it is zoomed out. */
async function addLevels(doc) {
  let { width, height } = doc;
  while (width * height > MAX_PIXELS) {
    [width, height] = [Math.ceil(width / 2), Math.ceil(height / 2)];
    const size = { resizeWidth: width, resizeHeight: height, resizeQuality: "medium" };
    doc.levels.push(await createImageBitmap(doc.levels.at(-1), size));
  }
}

/** Removes the oldest patches that are too many. */
function shorten(patches) {
  let bytes = 0;
  let kept = patches.length;
  while (kept > 0 && patches.length - kept < MAX_UNDO) {
    bytes += 2 * patches[kept - 1].after.length;
    if (bytes > MAX_UNDO_BYTES && kept < patches.length) break;
    kept--;
  }
  patches.splice(0, kept);
}
