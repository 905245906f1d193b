// Tiles: which are seen, how their values become colours, and their masks.

const PAINTED = 420; // canvases kept

function tileKeys(head, bands, level, row, column, layers) {
  return layers.map((layer) => {
    const version = head.versions[layer === "mask" ? "mask" : "image"];
    return `${layer}:${version}:${layer === "mask" ? "" : bands}:${level}:${row}:${column}`;
  });
}

// Those that the window shows, from a place outwards (its middle, when not given); `more` tiles beyond each edge.
function seen(ui, level, more = 0, from = null) {
  const { head, wide, high } = ui;
  const side = head.tile * 2 ** level;
  const [low, top] = [toImage(ui, 0, 0), toImage(ui, wide, high)];
  const last = head.shape.map((n) => Math.ceil(n / side) - 1);
  const range = (begin, end, most) => [Math.max(0, Math.floor(begin / side) - more), Math.min(most, Math.floor(end / side) + more)];
  const [r0, r1] = range(low.row, top.row, last[0]);
  const [c0, c1] = range(low.column, top.column, last[1]);
  const found = [];
  for (let row = r0; row <= r1; row++) for (let column = c0; column <= c1; column++) found.push({ level, row, column });
  const { column: x, row: y } = from || { column: ui.view.x, row: ui.view.y };
  const [mx, my] = [x / side - 0.5, y / side - 0.5];
  return found.sort((a, b) => (a.column - mx) ** 2 + (a.row - my) ** 2 - (b.column - mx) ** 2 - (b.row - my) ** 2);
}

// Where a tile lies on the screen, on whole device pixels: neighbours leave no gap.
function placeOf(ui, { level, row, column }, slab) {
  const dense = window.devicePixelRatio || 1;
  const step = 2 ** level;
  const side = ui.head.tile * step;
  const [right, bottom] = [Math.min(ui.head.shape[1], (column + 1) * side), Math.min(ui.head.shape[0], (row + 1) * side)];
  const [a, b] = [toScreen(ui, column * side, row * side), toScreen(ui, right, bottom)];
  const whole = (v) => Math.round(v * dense) / dense;
  const [x, y] = [whole(a.x), whole(a.y)];
  return { x, y, w: whole(b.x) - x, h: whole(b.y) - y, columns: slab.columns, rows: slab.rows };
}

// Values at the percentiles of the stretch, per band that is shown.
function limitsOf(head, view) {
  const [low, high] = view.stretch.split("-").map((p) => head.percentiles.indexOf(Number(p)));
  return view.bands.map((band) => {
    const values = head.stretches[band];
    return values[high] > values[low] ? [values[low], values[high]] : [values[0], Math.max(values[values.length - 1], values[0] + 1e-9)];
  });
}

function curveOf(gamma) {
  return Uint8ClampedArray.from({ length: 1025 }, (_, i) => Math.round(255 * (i / 1024) ** (1 / gamma)));
}

// Whole numbers of up to 16 bits -> brightness: each value is worked out once, not at every pixel.
const TABLES = new Map();

function tableOf(low, high, gamma, curve, first) {
  const key = `${low}|${high}|${gamma}|${first}`;
  let found = TABLES.get(key);
  if (!found) {
    const factor = 1024 / (high - low);
    found = Uint8ClampedArray.from({ length: 65536 }, (_, i) => brightness((i + first - low) * factor, curve));
    TABLES.set(key, found);
    if (TABLES.size > 12) TABLES.delete(TABLES.keys().next().value);
  }
  return found;
}

function brightness(share, curve) {
  return share >= 1024 ? 255 : share > 0 ? curve[Math.round(share)] : 0;
}

function paintTile(head, view, order, image, valid) {
  const canvas = canvasOf(image);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(image.columns, image.rows);
  const out = pixels.data;
  const whole = image.rows * image.columns;
  const curve = curveOf(view.gamma);
  limitsOf(head, view).forEach(([low, high], k) => {
    const from = order.indexOf(view.bands[k]) * whole;
    const { values } = image;
    if (values instanceof Float32Array) {
      const factor = 1024 / (high - low);
      for (let i = 0, at = k; i < whole; i++, at += 4) out[at] = brightness((values[from + i] - low) * factor, curve);
    } else {
      const first = values instanceof Int16Array ? -32768 : 0;
      const table = tableOf(low, high, view.gamma, curve, first);
      for (let i = 0, at = k; i < whole; i++, at += 4) out[at] = table[values[from + i] - first];
    }
  });
  for (let i = 0, at = 3; i < whole; i++, at += 4) {
    const value = image.values[i];
    out[at] = (valid && !valid.values[i]) || value !== value ? 0 : 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Pixels of a class that touch another: lines at scales where a pixel of the mask is about one of the screen.
function paintBorders(head, slab, hidden) {
  const canvas = canvasOf(slab);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(slab.columns, slab.rows);
  const out = new Uint32Array(pixels.data.buffer);
  const has = claims(head, slab);
  const { rows, columns } = slab;
  for (const { c, colour } of shownClasses(head, hidden)) {
    const [r, g, b] = rgbOf(colour);
    const packed = (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
    for (let row = 0, i = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, i++) {
        if (!has(i, c)) continue;
        const edge =
          (column > 0 && !has(i - 1, c)) || (column < columns - 1 && !has(i + 1, c)) ||
          (row > 0 && !has(i - columns, c)) || (row < rows - 1 && !has(i + columns, c));
        if (edge) out[i] = packed;
      }
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Borders between pixels as lines, within the tile: sharp at every zoom.
function borderPaths(head, slab, hidden) {
  const has = claims(head, slab);
  const { rows, columns } = slab;
  return shownClasses(head, hidden).map(({ c, colour }) => {
    const path = new Path2D();
    for (let r = 0, i = 0; r < rows; r++) {
      for (let k = 0; k < columns; k++, i++) {
        const here = has(i, c);
        if (k + 1 < columns && here !== has(i + 1, c)) {
          path.moveTo(k + 1, r);
          path.lineTo(k + 1, r + 1);
        }
        if (r + 1 < rows && here !== has(i + columns, c)) {
          path.moveTo(k, r + 1);
          path.lineTo(k + 1, r + 1);
        }
      }
    }
    return { path, colour };
  });
}

// Least recently used canvases go first.
class Painted {
  constructor() {
    this.made = new Map();
  }

  once(key, work) {
    let found = this.made.get(key);
    if (found) this.made.delete(key);
    else found = work();
    this.made.set(key, found);
    if (this.made.size > PAINTED) this.made.delete(this.made.keys().next().value);
    return found;
  }
}
