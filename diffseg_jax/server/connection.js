// Requests to the server, the queue of patches, and the events. Nothing here touches the document.

/** What the page can explain in one sentence, its message. */
export class Problem extends Error {}

/** The server understood a request and refused it; `message` is its sentence. */
export class Refused extends Problem {
  constructor(status, body) {
    super(body.error || `The server responded with the status ${status}.`);
    this.status = status;
    this.body = body;
  }
}

/** The server did not respond, or failed (507: its disk is full); the same request may succeed later. */
export class Unreachable extends Problem {}

/** A Response; raises Refused or Unreachable. */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Unreachable("The server cannot be reached.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  if (response.status === 401 || response.status === 403) {
    throw new Unreachable(
      body.error || "The server no longer accepts this tab.",
    );
  }
  if (response.status >= 500) {
    throw new Unreachable(body.error || "The server failed; its terminal says why.");
  }
  throw new Refused(response.status, body);
}

export async function getJson(path) {
  return (await request(path)).json();
}

export async function postJson(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  return (await request(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/** {key, revision} of the image in an ETag such as "0f3a-12" or W/"0f3a-12". */
export function tagIn(response) {
  const parts = (response.headers.get("ETag") || "").replace(/^W\/|"/g, "").split("-");
  return { key: parts[0], revision: Number(parts.at(-1)) };
}

const WAITS = [250, 500, 1000, 2000, 4000]; // milliseconds between attempts

/**
 * Sends patches one after another, in the order in which they were made, and keeps each until the
 * server has it. handlers: saved(doc, body); conflict(doc): the labels have another revision, or the
 * image has another index; refused(doc, entry, sentence), which has to remove the entry; changed();
 * again(): awaited before the first patch for a server that was away, which may have other images.
 */
export class PatchQueue {
  constructor(handlers) {
    this.handlers = handlers;
    this.waiting = []; // {doc, patch}
    this.trouble = ""; // the sentence of why nothing can be sent, or ""
    this.running = false;
    this.wasAway = false;
    this.idle = [];
    this.wake = () => {};
  }

  add(doc, patch) {
    this.waiting.push({ doc, patch });
    this.handlers.changed();
    if (!this.running) this.run();
  }

  /** The patches of an image that the server does not have yet. */
  of(doc) {
    return this.waiting.filter((each) => each.doc === doc).map((each) => each.patch);
  }

  remove(entry) {
    this.waiting = this.waiting.filter((each) => each !== entry);
  }

  /** Resolves when everything is sent. */
  empty() {
    return this.waiting.length
      ? new Promise((resolve) => this.idle.push(resolve))
      : Promise.resolve();
  }

  async run() {
    this.running = true;
    for (let attempt = 0; this.waiting.length; ) {
      try {
        if (this.wasAway) await this.handlers.again();
        this.wasAway = false;
        if (this.waiting.length) await this.send(this.waiting[0]);
        attempt = 0;
        this.trouble = "";
      } catch (error) {
        this.trouble = error.message;
        this.wasAway = true;
        this.handlers.changed();
        const pause = WAITS[Math.min(attempt++, WAITS.length - 1)];
        await new Promise((resolve) => {
          this.wake = resolve;
          setTimeout(resolve, pause);
        });
      }
      this.handlers.changed();
    }
    this.running = false;
    this.idle.splice(0).forEach((resolve) => resolve());
  }

  /** Sends one patch; raises Unreachable if it has to be sent again. */
  async send({ doc, patch }) {
    const { x, y, width, height } = patch;
    const query = new URLSearchParams({ x, y, width, height });
    const headers = {
      "If-Match": `"${doc.key}-${doc.revision}"`,
      "Content-Type": "application/octet-stream",
    };
    const options = { method: "PATCH", headers, body: patch.after };
    let body;
    try {
      body = await (await request(`api/images/${doc.index}/labels?${query}`, options)).json();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 409 || error.status === 412) return this.handlers.conflict(doc);
      return this.handlers.refused(doc, this.waiting[0], error.message);
    }
    this.waiting.shift();
    this.handlers.saved(doc, body);
  }
}

/**
 * Follows the events of the server and begins again when the connection ends.
 * handlers: opened(), lost(), state, image, fit, classes, error: functions of the data of events.
 */
export function follow(handlers) {
  const source = new EventSource("api/events");
  source.onopen = handlers.opened;
  for (const name of ["state", "image", "fit", "classes"]) {
    source.addEventListener(name, (event) => handlers[name](JSON.parse(event.data)));
  }
  source.addEventListener("error", (event) => {
    if (event.data) {
      handlers.error(JSON.parse(event.data).error);
      return;
    }
    handlers.lost();
    source.close();
    setTimeout(() => follow(handlers), 1000);
  });
}
