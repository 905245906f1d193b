// Mouse and keys on a plane.

const DRAG_STARTS = 4; // pixels; less is a click
const PROMPTS = ["point", "box", "brush", "polygon"];

function elementUnder(viewport, event) {
  const frame = viewport.canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
  const p = viewport.place_;
  const { column, row } = toElement(p, x, y);
  const inside = column >= -0.5 && row >= -0.5 && column < p.columns - 0.5 && row < p.rows - 0.5;
  return { x, y, column, row, inside, p };
}

function indexUnder(viewport, at, round) {
  const { ui, plane } = viewport;
  const [column, row] = round
    ? [clamp(Math.round(at.column), 0, at.p.columns - 1), clamp(Math.round(at.row), 0, at.p.rows - 1)]
    : [clamp(at.column, -0.5, at.p.columns - 0.5), clamp(at.row, -0.5, at.p.rows - 0.5)];
  return toIndex(ui.head, plane, ui.view.cross, column, row);
}

// What a press begins: {move, up, click}, each of them optional.
function begins(viewport, event) {
  const { ui } = viewport;
  const at = elementUnder(viewport, event);
  if (event.button === 1 || (event.button === 0 && (event.shiftKey || ui.tool === "pan") && ui.tool !== "brush" && ui.tool !== "point"))
    return panning(viewport);
  if (event.button === 2 && ui.tool === "point") return { click: () => point(viewport, at, false) };
  if (event.button === 2 && ui.tool === "brush") return stroke(viewport, event, at, true);
  if (event.button === 2) return zooming(viewport, at);
  if (ui.tool === "length") return ruler(viewport, at);
  if (ui.tool === "area") return { ...windowing(ui), click: (e) => corner(viewport, elementUnder(viewport, e), "area") };
  if (ui.tool === "polygon") return { ...windowing(ui), click: (e) => corner(viewport, elementUnder(viewport, e), "polygon") };
  if (ui.tool === "point") return { ...windowing(ui), click: (e) => point(viewport, at, !(e.shiftKey || e.altKey)) };
  if (ui.tool === "box") return box(viewport, at);
  if (ui.tool === "brush") return stroke(viewport, event, at, event.shiftKey || event.altKey);
  return { ...windowing(ui), click: () => cross(viewport, at) };
}

function cross(viewport, at) {
  if (!at.inside) return;
  viewport.ui.setCross(indexUnder(viewport, at, true));
  viewport.ui.tell("cross", viewport, [viewport.ui.view.cross]);
}

function windowing(ui) {
  const { window, level } = ui.view;
  const speed = ui.spread / 400;
  return {
    move: (dx, dy) => {
      ui.setWindow(Math.max(window + dx * speed, ui.head.whole ? 1 : ui.spread * 1e-4), level + dy * speed, "");
    },
  };
}

function panning(viewport) {
  const { ui, plane } = viewport;
  const before = { scale: 1, x: 0, y: 0, ...ui.view.zoom[plane.name] };
  return { move: (dx, dy) => ui.setZoom(plane, { ...before, x: before.x + dx, y: before.y + dy }) };
}

// Keeps the place under (x, y) where it is.
function zoomed(before, factor, x, y, width, height) {
  const scale = clamp(before.scale * factor, 0.2, 60);
  const grown = scale / before.scale;
  const [cx, cy] = [x - width / 2, y - height / 2];
  return { scale, x: cx - (cx - before.x) * grown, y: cy - (cy - before.y) * grown };
}

function zooming(viewport, at) {
  const { ui, plane, canvas } = viewport;
  const before = { scale: 1, x: 0, y: 0, ...ui.view.zoom[plane.name] };
  return {
    move: (dx, dy) =>
      ui.setZoom(plane, zoomed(before, Math.exp(-dy / 120), at.x, at.y, canvas.clientWidth, canvas.clientHeight)),
  };
}

function ruler(viewport, at) {
  const { ui, plane } = viewport;
  const start = indexUnder(viewport, at, false);
  const open = ui.measuring;
  // Two clicks are as good as a drag.
  if (open?.kind === "length" && open.axis === plane.axis && viewport.here(open.points)) {
    return { click: (e) => (ui.moveMeasure(indexUnder(viewport, elementUnder(viewport, e), false)), ui.endMeasure()) };
  }
  ui.measuring = { kind: "length", axis: plane.axis, plane: plane.name, points: [start, start] };
  return {
    move: (dx, dy, e) => ui.moveMeasure(indexUnder(viewport, elementUnder(viewport, e), false)),
    up: () => ui.endMeasure(),
    click: () => ui.redraw(),
  };
}

// The next corner of an area to measure, or of a polygon for the model.
function corner(viewport, at, kind) {
  const { ui, plane } = viewport;
  const index = indexUnder(viewport, at, false);
  if (kind === "area") {
    const open = ui.measuring;
    if (open?.kind === "area" && open.axis === plane.axis && viewport.here(open.points)) open.points.push(index);
    else ui.measuring = { kind: "area", axis: plane.axis, plane: plane.name, points: [index, [...index]] };
  } else {
    const open = ui.drafts.find((d) => d.kind === "polygon" && !d.closed);
    if (open && open.axis === plane.axis && viewport.here(open.points)) open.points.push(index);
    else ui.drafts = [{ kind: "polygon", axis: plane.axis, viewport, points: [index], closed: false, colour: ui.labelColour }];
  }
  ui.redraw();
}

function closePolygon(ui) {
  const open = ui.drafts.find((d) => d.kind === "polygon" && !d.closed);
  if (!open) return;
  const points = open.points.filter((q, i) => !i || lengthOf(ui.head, q, open.points[i - 1]) > 1e-6);
  if (points.length < 3) ui.drafts = [];
  else {
    open.points = points;
    open.closed = true;
    ui.tell("polygon", open.viewport, points);
  }
  ui.redraw();
}

function point(viewport, at, positive) {
  if (!at.inside) return;
  const { ui, plane } = viewport;
  const index = indexUnder(viewport, at, true);
  ui.drafts = [...ui.drafts, { kind: "point", axis: plane.axis, points: [index], positive }];
  ui.tell("point", viewport, [index], { positive });
  ui.redraw();
}

function box(viewport, at) {
  const { ui, plane } = viewport;
  const draft = { kind: "box", axis: plane.axis, points: [indexUnder(viewport, at, false)], colour: ui.labelColour };
  draft.points.push(draft.points[0]);
  return {
    move: (dx, dy, e) => {
      if (!ui.drafts.includes(draft)) ui.drafts = [...ui.drafts, draft];
      draft.points = [draft.points[0], indexUnder(viewport, elementUnder(viewport, e), false)];
      ui.redraw();
    },
    up: () => ui.tell("box", viewport, draft.points),
    click: () => cross(viewport, at),
  };
}

function stroke(viewport, event, at, erase) {
  const { ui, plane } = viewport;
  const draft = {
    kind: "brush", axis: plane.axis, radius: ui.radius, colour: erase ? "#ff5252" : ui.labelColour,
    points: [indexUnder(viewport, at, false)],
  };
  ui.drafts = [...ui.drafts, draft];
  ui.redraw();
  const end = () => ui.tell("brush", viewport, draft.points, { positive: !erase, radius: draft.radius });
  return {
    move: (dx, dy, e) => {
      draft.points.push(indexUnder(viewport, elementUnder(viewport, e), false));
      ui.redraw();
    },
    up: end,
    click: end,
  };
}

function listen(ui, viewport) {
  const { canvas, plane } = viewport;
  let press = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    ui.active = viewport;
    canvas.setPointerCapture(event.pointerId);
    press = { x: event.clientX, y: event.clientY, moved: false, does: begins(viewport, event) };
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = elementUnder(viewport, event);
    ui.brushAt = { viewport, x: at.x, y: at.y };
    ui.readOut(viewport, at.inside ? at : null);
    if (press) {
      const [dx, dy] = [event.clientX - press.x, event.clientY - press.y];
      press.moved ||= Math.hypot(dx, dy) >= DRAG_STARTS;
      if (press.moved) press.does.move?.(dx, dy, event);
    } else if (ui.measuring && ui.measuring.axis === plane.axis) {
      ui.moveMeasure(indexUnder(viewport, at, false));
    } else if (ui.tool === "brush") ui.redraw();
  });
  const release = (event) => {
    if (!press) return;
    const { moved, does } = press;
    press = null;
    if (event.type === "pointercancel") return;
    if (moved) does.up?.(event);
    else does.click?.(event);
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => {
    ui.brushAt = null;
    ui.readOut(viewport, null);
    ui.redraw();
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => {
    if (ui.measuring?.kind === "area") ui.endMeasure();
    else if (ui.tool === "polygon") closePolygon(ui);
    else if (ui.tool === "look" || ui.tool === "pan") ui.setMain(plane.name);
  });
  let turned = 0;
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      if (event.ctrlKey || event.metaKey || plane.axis === null) {
        const at = elementUnder(viewport, event);
        const before = { scale: 1, x: 0, y: 0, ...ui.view.zoom[plane.name] };
        const factor = Math.exp(-clamp(event.deltaY, -100, 100) / 400);
        ui.setZoom(plane, zoomed(before, factor, at.x, at.y, canvas.clientWidth, canvas.clientHeight));
        return;
      }
      // A notch of a wheel is a slice; a touch pad needs some way for one.
      const unit = event.deltaMode === 0 ? (Math.abs(event.deltaY) >= 50 ? Math.abs(event.deltaY) : 30) : 1;
      turned += event.deltaY / unit;
      const steps = Math.trunc(turned);
      if (!steps) return;
      turned -= steps;
      ui.setSlice(plane, viewport.index + clamp(steps, -3, 3));
      ui.readOut(viewport, elementUnder(viewport, event));
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    if (key(ui, viewport, event)) {
      event.preventDefault();
      event.stopPropagation();
    }
  });
}

const SLICE_KEYS = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -10, PageDown: 10 };

function key(ui, viewport, event) {
  const { plane } = viewport;
  const { view } = ui;
  const name = event.key;
  if (event.ctrlKey || event.metaKey) return false;
  if (event.altKey && name in SLICE_KEYS) {
    const sign = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] }[name];
    if (!sign) return false;
    ui.setWindow(Math.max(view.window + (sign[0] * ui.spread) / 40, 1e-6), view.level + (sign[1] * ui.spread) / 40, "");
  } else if (event.shiftKey && name.startsWith("Arrow")) {
    const p = viewport.place_;
    const moved = [...view.cross];
    if (name === "ArrowLeft" || name === "ArrowRight") moved[plane.across] += p.turnX * (name === "ArrowRight" ? 1 : -1);
    else moved[plane.down] += p.turnY * (name === "ArrowDown" ? 1 : -1);
    ui.setCross(moved);
  } else if (name in SLICE_KEYS) ui.setSlice(plane, viewport.index + SLICE_KEYS[name]);
  else if (name === "Home") ui.setSlice(plane, 0);
  else if (name === "End") ui.setSlice(plane, viewport.depth - 1);
  else if (name === "+" || name === "=" || name === "-") {
    const before = { scale: 1, x: 0, y: 0, ...view.zoom[plane.name] };
    const { clientWidth: w, clientHeight: h } = viewport.canvas;
    ui.setZoom(plane, zoomed(before, name === "-" ? 0.8 : 1.25, w / 2, h / 2, w, h));
  } else if (name === "o") ui.setView({ labels: !view.labels });
  else if (name === "b") ui.setView({ outline: !view.outline });
  else if (name === "x") ui.setView({ crosshair: !view.crosshair });
  else if (name === "i") ui.setView({ invert: !view.invert });
  else if (name === "r") ui.setView({ radiological: !view.radiological });
  else if (name === "0") ui.reset();
  else if (name === "m") ui.setMain(plane.name);
  else if (name === "Enter" && ui.measuring) ui.endMeasure();
  else if (name === "Enter" && ui.tool === "polygon") closePolygon(ui);
  else if (name === "Enter" && ui.tool === "point") point(viewport, crossPlace(viewport), !event.shiftKey);
  else if (name === "Escape" && (ui.measuring || ui.drafts.length)) {
    ui.measuring = null;
    ui.drafts = [];
    ui.redraw();
  } else if ((name === "Delete" || name === "Backspace") && ui.measures.length) {
    ui.measures = ui.measures.slice(0, -1);
    ui.tellMeasures(viewport);
    ui.redraw();
  } else return false;
  return true;
}

// Where the crosshair is, as if the mouse were there: prompts without a mouse.
function crossPlace(viewport) {
  const { cross } = viewport.ui.view;
  return { column: cross[viewport.plane.across], row: cross[viewport.plane.down], inside: true, p: viewport.place_ };
}
