// Planes of class ids: Uint8Array of width * height, row by row. Nothing here touches the document.

export const UNPAINTED = 255; // no label
export const KEEP = 254; // in a patch: leave the pixel as it is

const EMPTY = { left: Infinity, top: Infinity, right: -Infinity, bottom: -Infinity };

/** A rectangle of whole pixels, right and bottom excluded, that holds both. */
export function joined(a, b) {
  return {
    left: Math.min(a.left, b.left),
    top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right),
    bottom: Math.max(a.bottom, b.bottom),
  };
}

export const nothing = () => ({ ...EMPTY });
export const isEmpty = (rect) => rect.left >= rect.right || rect.top >= rect.bottom;

/** The part of a rectangle inside width x height. */
export function clipped(rect, width, height) {
  return {
    left: Math.max(0, rect.left),
    top: Math.max(0, rect.top),
    right: Math.min(width, rect.right),
    bottom: Math.min(height, rect.bottom),
  };
}

/** Where the centre of a brush of `size` pixels may be, so that its shape never depends on it. */
export function snapped(point, size) {
  const shift = size % 2 ? 0.5 : 0;
  const snap = (value) => (shift ? Math.floor(value) + 0.5 : Math.round(value));
  return { x: snap(point.x), y: snap(point.y) };
}

/**
 * Sets every pixel whose centre is within size / 2 of the segment from a to b, without blending.
 * Returns the rectangle that it lies in.
 */
export function sweep(plane, width, height, a, b, size, id) {
  const radius = size / 2 + 1e-6;
  const length = Math.hypot(b.x - a.x, b.y - a.y);
  const nx = length ? (-(b.y - a.y) / length) * radius : 0;
  const ny = length ? ((b.x - a.x) / length) * radius : 0;
  const corners = [
    [a.x + nx, a.y + ny],
    [b.x + nx, b.y + ny],
    [b.x - nx, b.y - ny],
    [a.x - nx, a.y - ny],
  ];
  const rect = clipped(
    {
      left: Math.floor(Math.min(a.x, b.x) - radius),
      top: Math.floor(Math.min(a.y, b.y) - radius),
      right: Math.ceil(Math.max(a.x, b.x) + radius),
      bottom: Math.ceil(Math.max(a.y, b.y) + radius),
    },
    width,
    height,
  );
  for (let y = rect.top; y < rect.bottom; y++) {
    const [low, high] = rowOf(y + 0.5, a, b, corners, radius); // the swept shape is convex
    const first = Math.max(0, Math.ceil(low - 0.5));
    const last = Math.min(width - 1, Math.floor(high - 0.5));
    if (first <= last) plane.fill(id, y * width + first, y * width + last + 1);
  }
  return rect;
}

/** The interval that a swept disc covers on the line y. */
function rowOf(y, a, b, corners, radius) {
  let low = Infinity;
  let high = -Infinity;
  for (const centre of [a, b]) {
    const half = radius * radius - (y - centre.y) ** 2;
    if (half >= 0) {
      low = Math.min(low, centre.x - Math.sqrt(half));
      high = Math.max(high, centre.x + Math.sqrt(half));
    }
  }
  for (let i = 0; i < 4; i++) {
    const [px, py] = corners[i];
    const [qx, qy] = corners[(i + 1) % 4];
    if (py !== qy && y >= Math.min(py, qy) && y <= Math.max(py, qy)) {
      const x = px + ((y - py) / (qy - py)) * (qx - px);
      low = Math.min(low, x);
      high = Math.max(high, x);
    }
  }
  return [low, high];
}

/** Sets the pixels whose centres are inside a polygon of {x, y} (even-odd rule). */
export function fillPolygon(plane, width, height, points, id) {
  const xs = points.map((point) => point.x);
  const ys = points.map((point) => point.y);
  const rect = clipped(
    {
      left: Math.floor(Math.min(...xs)),
      top: Math.floor(Math.min(...ys)),
      right: Math.ceil(Math.max(...xs)),
      bottom: Math.ceil(Math.max(...ys)),
    },
    width,
    height,
  );
  for (let y = rect.top; y < rect.bottom; y++) {
    const crossings = [];
    points.forEach((p, i) => {
      const q = points[(i + 1) % points.length];
      if (p.y <= y + 0.5 !== q.y <= y + 0.5) {
        crossings.push(p.x + ((y + 0.5 - p.y) / (q.y - p.y)) * (q.x - p.x));
      }
    });
    crossings.sort((m, n) => m - n);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const first = Math.max(0, Math.ceil(crossings[i] - 0.5));
      const end = Math.min(width, Math.ceil(crossings[i + 1] - 0.5));
      if (first < end) plane.fill(id, y * width + first, y * width + end);
    }
  }
  return rect;
}

/**
 * Copies the connected region of one class in `prediction` around (x, y) to where `plane` is not
 * painted. Returns the rectangle that the region lies in.
 */
export function acceptSegment(plane, prediction, width, height, x, y) {
  const id = prediction[y * width + x];
  const seen = new Uint8Array(plane.length);
  const waiting = [y * width + x]; // one pixel of each run that has to be painted
  const rect = { left: x, top: y, right: x + 1, bottom: y + 1 };
  while (waiting.length) {
    let left = waiting.pop();
    if (seen[left]) continue;
    const row = Math.floor(left / width);
    const [first, end] = [row * width, (row + 1) * width];
    let right = left + 1;
    while (left > first && prediction[left - 1] === id) left--;
    while (right < end && prediction[right] === id) right++;
    for (let p = left; p < right; p++) {
      seen[p] = 1;
      if (plane[p] === UNPAINTED) plane[p] = id;
    }
    if (row > 0) pushRuns(waiting, prediction, seen, id, left - width, right - width);
    if (row + 1 < height) pushRuns(waiting, prediction, seen, id, left + width, right + width);
    rect.left = Math.min(rect.left, left - first);
    rect.right = Math.max(rect.right, right - first);
    rect.top = Math.min(rect.top, row);
    rect.bottom = Math.max(rect.bottom, row + 1);
  }
  return rect;
}

/** Adds the first pixel of each run of `id` in left..right of one row, unless it was seen. */
function pushRuns(waiting, prediction, seen, id, left, right) {
  let inside = false;
  for (let p = left; p < right; p++) {
    const matches = prediction[p] === id;
    if (matches && !inside && !seen[p]) waiting.push(p);
    inside = matches;
  }
}

/**
 * What differs between two planes within a rectangle: {x, y, width, height, before, after}, both
 * with KEEP where they agree; null if they do.
 */
export function difference(old, now, planeWidth, rect) {
  let box = nothing();
  for (let y = rect.top; y < rect.bottom; y++) {
    const row = y * planeWidth;
    let first = rect.left;
    let last = rect.right - 1;
    while (first <= last && old[row + first] === now[row + first]) first++;
    while (last > first && old[row + last] === now[row + last]) last--;
    if (first <= last) box = joined(box, { left: first, right: last + 1, top: y, bottom: y + 1 });
  }
  if (isEmpty(box)) return null;
  const [width, height] = [box.right - box.left, box.bottom - box.top];
  const before = new Uint8Array(width * height).fill(KEEP);
  const after = new Uint8Array(width * height).fill(KEEP);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const p = (box.top + y) * planeWidth + box.left + x;
      if (old[p] !== now[p]) {
        before[y * width + x] = old[p];
        after[y * width + x] = now[p];
      }
    }
  }
  return { x: box.left, y: box.top, width, height, before, after };
}

/** Writes the values of a patch, except KEEP, into a plane. */
export function apply(plane, planeWidth, patch, values) {
  for (let y = 0; y < patch.height; y++) {
    const target = (patch.y + y) * planeWidth + patch.x;
    const source = y * patch.width;
    for (let x = 0; x < patch.width; x++) {
      if (values[source + x] !== KEEP) plane[target + x] = values[source + x];
    }
  }
}

export const rectOf = (patch) => ({
  left: patch.x,
  top: patch.y,
  right: patch.x + patch.width,
  bottom: patch.y + patch.height,
});

/** The patch that undoes a patch. */
export const inverse = (patch) => ({ ...patch, before: patch.after, after: patch.before });

/**
 * Reads an 8-bit grey PNG without a canvas, because browsers may change pixels that pass through
 * one: by colour profiles, or on purpose against fingerprinting. -> {width, height, data}
 */
export async function readGreyPng(buffer) {
  const view = new DataView(buffer);
  const isPng = buffer.byteLength > 33 && view.getUint32(0) === 0x89504e47;
  const [width, height] = isPng ? [view.getUint32(16), view.getUint32(20)] : [0, 0];
  if (!isPng || view.getUint32(24) !== 0x08000000 || view.getUint8(28)) {
    throw new Error("The server sent a map that is not an 8-bit grey PNG.");
  }
  const parts = [];
  for (let at = 8; at + 12 <= buffer.byteLength; at += 12 + view.getUint32(at)) {
    if (view.getUint32(at + 4) === 0x49444154) {
      parts.push(new Uint8Array(buffer, at + 8, view.getUint32(at))); // IDAT
    }
  }
  const inflated = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(inflated).arrayBuffer());
  return { width, height, data: unfiltered(rows, width, height) };
}

/** Undoes the filters of PNG rows of one byte per pixel (PNG specification, section 9). */
function unfiltered(rows, width, height) {
  const data = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (width + 1)];
    const source = y * (width + 1) + 1;
    const row = y * width;
    if (filter === 0) {
      data.set(rows.subarray(source, source + width), row);
      continue;
    }
    for (let x = 0; x < width; x++) {
      const left = x ? data[row + x - 1] : 0;
      const up = y ? data[row - width + x] : 0;
      const corner = x && y ? data[row - width + x - 1] : 0;
      let guess = left;
      if (filter === 2) guess = up;
      else if (filter === 3) guess = (left + up) >> 1;
      else if (filter === 4) guess = nearest(left, up, corner);
      data[row + x] = rows[source + x] + guess;
    }
  }
  return data;
}

function nearest(left, up, corner) {
  const toLeft = Math.abs(up - corner);
  const toUp = Math.abs(left - corner);
  const toCorner = Math.abs(left + up - 2 * corner);
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}
