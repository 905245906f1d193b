// Mouse and keys on the map.

const DRAG_STARTS = 4; // pixels; less is a click

function under(ui, event) {
  const frame = ui.canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
  const { column, row } = toImage(ui, x, y);
  const [rows, columns] = ui.head.shape;
  return { x, y, column, row, inside: column >= 0 && row >= 0 && column < columns && row < rows };
}

function cornerOf(ui, at) {
  const [rows, columns] = ui.head.shape;
  return [clamp(at.row, 0, rows) - 0.5, clamp(at.column, 0, columns) - 0.5];
}

function moving(ui) {
  const { x, y, scale } = ui.view;
  return { move: (dx, dy) => ui.setView({ x: x - dx / scale, y: y - dy / (scale * ui.aspect) }) };
}

function point(ui, at, positive) {
  if (!at.inside) return;
  const index = [Math.floor(at.row), Math.floor(at.column)];
  ui.drafts = [...ui.drafts, { kind: "point", points: [index], positive }];
  ui.tell("point", [index], { positive });
  ui.redraw();
}

function boxing(ui, at) {
  const draft = { kind: "box", points: [cornerOf(ui, at), cornerOf(ui, at)], colour: ui.head.label_colour };
  return {
    move: (dx, dy, event) => {
      if (!ui.drafts.includes(draft)) ui.drafts = [...ui.drafts, draft];
      draft.points = [draft.points[0], cornerOf(ui, under(ui, event))];
      ui.redraw();
    },
    up: () => ui.tell("box", draft.points),
  };
}

// What a press begins: {move, up, click}, each of them optional.
function begins(ui, event) {
  const at = under(ui, event);
  if (event.button === 1 || (event.button === 0 && event.shiftKey && ui.tool !== "point")) return moving(ui);
  if (ui.tool === "point") return { ...moving(ui), click: (e) => point(ui, at, !(e.button === 2 || e.shiftKey || e.altKey)) };
  if (ui.tool === "box" && event.button === 0) return boxing(ui, at);
  return moving(ui);
}

function listen(ui) {
  const { canvas } = ui;
  let press = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    press = { x: event.clientX, y: event.clientY, moved: false, does: begins(ui, event) };
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    ui.over = under(ui, event);
    if (press) {
      const [dx, dy] = [event.clientX - press.x, event.clientY - press.y];
      press.moved ||= Math.hypot(dx, dy) >= DRAG_STARTS;
      if (press.moved) press.does.move?.(dx, dy, event);
    }
    ui.readOut();
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
    ui.over = null;
    ui.readOut();
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", (event) => ui.tool === "look" && ui.zoom(event.shiftKey ? 0.5 : 2, under(ui, event)));
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      // A notch is a fifth of an octave and a half; a touch pad goes by its way.
      const way = event.deltaMode === 0 ? event.deltaY : event.deltaY * 33;
      ui.zoom(Math.exp(-clamp(way, -150, 150) / 330), under(ui, event));
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    if (key(ui, event)) {
      event.preventDefault();
      event.stopPropagation();
    }
  });
}

function key(ui, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  const by = event.shiftKey ? 0.9 : 0.2; // of the window
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], PageUp: [0, -4], PageDown: [0, 4] };
  const name = event.key;
  if (name in ways) {
    const { x, y, scale } = ui.view;
    const [across, down] = ways[name];
    ui.setView({ x: x + (across * by * ui.wide) / scale, y: y + (down * by * ui.high) / (scale * ui.aspect) });
  } else if (name === "+" || name === "=") ui.zoom(1.5);
  else if (name === "-") ui.zoom(1 / 1.5);
  else if (name === "0" || name === "Home") ui.fit();
  else if (name === "1") ui.zoom(1 / ui.view.scale);
  else if (name === "o") ui.setView({ labels: !ui.view.labels });
  else if (name === "b") ui.setView({ outline: !ui.view.outline });
  else if (name === "Enter" && ui.tool === "point") point(ui, under(ui, middleOf(ui)), !event.shiftKey);
  else if (name === "Escape" && ui.drafts.length) {
    ui.drafts = [];
    ui.redraw();
  } else return false;
  return true;
}

// As if the mouse were in the middle: prompts without a mouse.
function middleOf(ui) {
  const frame = ui.canvas.getBoundingClientRect();
  return { clientX: frame.left + ui.wide / 2, clientY: frame.top + ui.high / 2 };
}
