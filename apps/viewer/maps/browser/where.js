// From pixels of the image to the screen and to the earth. Columns and rows count from the image's corner, not from the
// centre of its first pixel; what is told to Python counts from the centre.

function toScreen(ui, column, row) {
  const { view, wide, high, aspect } = ui;
  return { x: wide / 2 + (column - view.x) * view.scale, y: high / 2 + (row - view.y) * view.scale * aspect };
}

function toImage(ui, x, y) {
  const { view, wide, high, aspect } = ui;
  return { column: view.x + (x - wide / 2) / view.scale, row: view.y + (y - high / 2) / (view.scale * aspect) };
}

// The scale at which all of the image is seen.
function fitting(ui) {
  const [rows, columns] = ui.head.shape;
  return Math.min(ui.wide / columns, ui.high / (rows * ui.aspect)) * 0.985 || 1;
}

function levelOf(ui) {
  const dense = window.devicePixelRatio || 1;
  return clamp(Math.floor(Math.log2(1 / (ui.view.scale * dense)) + 0.5), 0, ui.head.levels - 1);
}

// A value of the place's grid between its nodes; null where it is not known.
function between(head, name, column, row) {
  const { place, shape } = head;
  const n = place.nodes;
  if (!n) return null;
  const [across, down] = [clamp(column / shape[1], 0, 1) * (n - 1), clamp(row / shape[0], 0, 1) * (n - 1)];
  const [c, r] = [Math.min(Math.floor(across), n - 2), Math.min(Math.floor(down), n - 2)];
  const [u, v] = [across - c, down - r];
  const four = [place[name][r * n + c], place[name][r * n + c + 1], place[name][(r + 1) * n + c], place[name][(r + 1) * n + c + 1]];
  if (four.some((one) => one === null)) return null;
  if (name === "lon") for (let i = 1; i < 4; i++) four[i] += 360 * Math.round((four[0] - four[i]) / 360); // the date line
  const found = (four[0] * (1 - u) + four[1] * u) * (1 - v) + (four[2] * (1 - u) + four[3] * u) * v;
  return name === "lon" ? ((((found + 180) % 360) + 360) % 360) - 180 : found;
}

function worldText(head, column, row) {
  const [[xr, xc, x0], [yr, yc, y0]] = head.place.affine;
  const [r, c] = [row - 0.5, column - 0.5];
  const [x, y] = [xr * r + xc * c + x0, yr * r + yc * c + y0];
  const text = (v) => (head.place.geographic ? v.toFixed(head.place.digits) : spaced(v.toFixed(head.place.digits)));
  return head.place.geographic ? "" : `${text(x)}, ${text(y)}${head.place.units ? ` ${head.place.units}` : ""}`;
}

function spaced(text) {
  const [whole, part] = text.split(".");
  return grouped(whole) + (part ? `.${part}` : "");
}

function lonLatText(head, column, row) {
  const [lon, lat] = [between(head, "lon", column, row), between(head, "lat", column, row)];
  if (lon === null || lat === null) return "";
  const metres = between(head, "down", column, row) || 10;
  const digits = clamp(Math.ceil(5 - Math.log10(Math.max(metres, 1e-3))), 2, 8);
  return `${Math.abs(lat).toFixed(digits)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(digits)}° ${lon < 0 ? "W" : "E"}`;
}

// 1, 2 or 5 times a power of ten.
function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].find((k) => k * power <= most) * power;
}

function lengthText(metres) {
  if (metres >= 1000) return `${metres / 1000} km`;
  return metres >= 1 ? `${metres} m` : `${Number((metres * 100).toPrecision(3))} cm`;
}

// Where north is on the screen, in radians clockwise from up; null where nobody knows.
function northOf(ui) {
  const { head, view } = ui;
  const [rows, columns] = head.shape;
  const step = Math.max(rows, columns) / head.place.nodes;
  const at = (c, r, name) => between(head, name, clamp(c, 0, columns), clamp(r, 0, rows));
  const [x, y] = [clamp(view.x, step, columns - step), clamp(view.y, step, rows - step)];
  const acrossRise = at(x + step, y, "lat") - at(x - step, y, "lat");
  const downRise = at(x, y + step, "lat") - at(x, y - step, "lat");
  if (!Number.isFinite(acrossRise) || !Number.isFinite(downRise)) return null;
  const [metresX, metresY] = [between(head, "across", x, y), between(head, "down", x, y)];
  return Math.atan2(acrossRise / metresX, -downRise / metresY);
}
