// Where things are: array index, millimetres and places on the screen.

// The part of an array that a plane shows, and its size on the screen before zoom.
function planeSize(head, plane) {
  const spacing = head.spacing || head.shape.map(() => 1);
  return {
    columns: head.shape[plane.across],
    rows: head.shape[plane.down],
    wide: spacing[plane.across],
    high: spacing[plane.down],
  };
}

// Centre, scale (screen pixels per millimetre, or per pixel without millimetres) and flips.
function placing(head, plane, view, width, height) {
  const size = planeSize(head, plane);
  const side = view.radiological ? plane.radiological : plane.neurological;
  const own = view.zoom[plane.name] || { scale: 1, x: 0, y: 0 };
  const room = Math.min(width / (size.columns * size.wide), height / (size.rows * size.high));
  return {
    ...size,
    scale: room * own.scale,
    x: width / 2 + own.x,
    y: height / 2 + own.y,
    turnX: side.flip_across ? -1 : 1,
    turnY: side.flip_down ? -1 : 1,
    letters: side.letters,
  };
}

// Column and row, with fractions; the centre of the first element is 0.
function toElement(p, x, y) {
  return {
    column: ((x - p.x) / (p.scale * p.wide)) * p.turnX + p.columns / 2 - 0.5,
    row: ((y - p.y) / (p.scale * p.high)) * p.turnY + p.rows / 2 - 0.5,
  };
}

function toScreen(p, column, row) {
  return {
    x: p.x + (column + 0.5 - p.columns / 2) * p.turnX * p.scale * p.wide,
    y: p.y + (row + 0.5 - p.rows / 2) * p.turnY * p.scale * p.high,
  };
}

// A full index of the array.
function toIndex(head, plane, cross, column, row) {
  const index = head.shape.map((_, axis) => cross[axis]);
  index[plane.across] = column;
  index[plane.down] = row;
  return index;
}

function toWorld(head, index) {
  if (!head.affine) return null;
  return [0, 1, 2].map((r) => head.affine[r][3] + index.reduce((sum, i, a) => sum + head.affine[r][a] * i, 0));
}

// The vector of one step along an array axis, in millimetres; null where no unit is known.
function stepVector(head, axis) {
  if (head.affine && head.shape.length === 3) return [0, 1, 2].map((r) => head.affine[r][axis]);
  if (!head.spacing) return null;
  return head.shape.map((_, a) => (a === axis ? head.spacing[axis] : 0));
}

function lengthOf(head, a, b) {
  const total = [0, 0, 0];
  for (let axis = 0; axis < head.shape.length; axis++) {
    const step = stepVector(head, axis) || head.shape.map((_, k) => (k === axis ? 1 : 0));
    step.forEach((s, k) => (total[k] += s * (b[axis] - a[axis])));
  }
  return Math.hypot(...total);
}

// Area of a polygon in a plane: its area in elements, times that of one element (sheared or not).
function areaOf(head, plane, points) {
  let twice = 0;
  points.forEach((a, i) => {
    const b = points[(i + 1) % points.length];
    twice += a[plane.across] * b[plane.down] - b[plane.across] * a[plane.down];
  });
  const u = stepVector(head, plane.across);
  const v = stepVector(head, plane.down);
  if (!u || !v) return Math.abs(twice) / 2;
  const [ux, uy, uz] = [u[0], u[1], u[2] || 0];
  const [vx, vy, vz] = [v[0], v[1], v[2] || 0];
  return (Math.hypot(uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx) * Math.abs(twice)) / 2;
}
