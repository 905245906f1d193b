// Values to pixels: grey by window, labels by colour, their borders, probabilities as heat.

// Dark blue over green to yellow, after viridis; even steps of brightness, readable for the colour-blind.
const HEAT = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];

function rgbOf(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

function heatOf(share) {
  const at = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1);
  const low = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[low].map((c, k) => Math.round(c + (HEAT[low + 1][k] - c) * (at - low)));
}

function grayOf(value, low, width) {
  const gray = ((value - low) * 255) / width;
  return gray >= 255 ? 255 : gray > 0 ? Math.round(gray) : 0; // NaN is black
}

function canvasOf(slab) {
  const canvas = document.createElement("canvas");
  canvas.width = slab.columns;
  canvas.height = slab.rows;
  return canvas;
}

// Reuses the canvas that is given where it fits.
function paintImage(slab, window, level, invert, canvas) {
  if (!canvas || canvas.width !== slab.columns || canvas.height !== slab.rows) canvas = canvasOf(slab);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(slab.columns, slab.rows);
  const out = new Uint32Array(pixels.data.buffer);
  const { values } = slab;
  const [low, width, turn] = [level - window / 2, Math.max(window, 1e-12), invert ? 255 : 0];
  const whole = slab.rows * slab.columns;
  if (slab.count === 3) {
    for (let i = 0; i < whole; i++) {
      const r = grayOf(values[i], low, width) ^ turn;
      const g = grayOf(values[i + whole], low, width) ^ turn;
      const b = grayOf(values[i + 2 * whole], low, width) ^ turn;
      out[i] = 0xff000000 | (b << 16) | (g << 8) | r;
    }
  } else if (values instanceof Float32Array) {
    for (let i = 0; i < whole; i++) out[i] = 0xff000000 | ((grayOf(values[i], low, width) ^ turn) * 0x010101);
  } else {
    const size = values instanceof Uint8Array ? 256 : 65536;
    const offset = values instanceof Int16Array ? 32768 : 0;
    const table = new Uint32Array(size);
    for (let v = 0; v < size; v++) table[v] = 0xff000000 | ((grayOf(v - offset, low, width) ^ turn) * 0x010101);
    for (let i = 0; i < whole; i++) out[i] = table[values[i] + offset];
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Whether class c claims the element; overlapping classes are bits.
function claims(head, slab) {
  const { values } = slab;
  return head.exclusive ? (i, c) => values[i] === c : (i, c) => ((values[i] >> c) & 1) === 1;
}

function shownClasses(head, hidden) {
  return head.classes
    .map((one, c) => ({ ...one, c }))
    .filter(({ name, c }) => !hidden.has(name) && !(head.background && c === 0));
}

function paintLabels(head, slab, hidden) {
  const canvas = canvasOf(slab);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(slab.columns, slab.rows);
  const out = new Uint32Array(pixels.data.buffer);
  const has = claims(head, slab);
  const table = new Uint32Array(256);
  for (const { c, colour } of shownClasses(head, hidden)) {
    const [r, g, b] = rgbOf(colour);
    const packed = (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
    table[c] = packed;
    // Later classes lie on top of those that they overlap with.
    if (!head.exclusive) for (let i = 0; i < out.length; i++) if (has(i, c)) out[i] = packed;
  }
  if (head.exclusive) for (let i = 0; i < out.length; i++) out[i] = table[slab.values[i]];
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function paintHeat(slab) {
  const canvas = canvasOf(slab);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(slab.columns, slab.rows);
  const table = Array.from({ length: 256 }, (_, v) => heatOf(v / 255));
  for (let i = 0; i < slab.values.length; i++) {
    pixels.data.set(table[slab.values[i]], 4 * i);
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Borders between elements as lines, in columns and rows of the slab: sharp at every zoom.
function outlines(head, slab, hidden) {
  const has = claims(head, slab);
  const { rows, columns } = slab;
  return shownClasses(head, hidden).map(({ c, colour }) => {
    const path = new Path2D();
    const inside = (r, k) => r >= 0 && k >= 0 && r < rows && k < columns && has(r * columns + k, c);
    for (let r = 0; r <= rows; r++) {
      for (let k = 0, from = -1; k <= columns; k++) {
        const edge = k < columns && inside(r - 1, k) !== inside(r, k);
        if (edge && from < 0) from = k;
        if (!edge && from >= 0) {
          path.moveTo(from, r);
          path.lineTo(k, r);
          from = -1;
        }
      }
    }
    for (let k = 0; k <= columns; k++) {
      for (let r = 0, from = -1; r <= rows; r++) {
        const edge = r < rows && inside(r, k - 1) !== inside(r, k);
        if (edge && from < 0) from = r;
        if (!edge && from >= 0) {
          path.moveTo(k, from);
          path.lineTo(k, r);
          from = -1;
        }
      }
    }
    return { path, colour };
  });
}

// The value of a layer at an index of the plane; undefined where it is not there yet.
function valueAt(slab, column, row, channel = 0) {
  if (!slab) return undefined;
  const [c, r] = [Math.floor(column / slab.step), Math.floor(row / slab.step)];
  return slab.values[channel * slab.rows * slab.columns + r * slab.columns + c];
}
