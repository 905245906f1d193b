// Tools above the planes, labels beside them, the readout below.

const TOOLS = [
  ["look", "window", "Window", "Drag: window and level. Click: move the crosshair"],
  ["pan", "pan", "Pan", "Drag: move the image (also Shift + drag)"],
  ["length", "length", "Length", "Drag or two clicks: length"],
  ["area", "area", "Area", "Click corners, double-click or Enter to close: area"],
];
const PROMPT_HINTS = {
  point: ["Points", "Click: this belongs to it. Right-click or Shift + click: this does not. Enter: at the crosshair"],
  box: ["Box", "Drag: a box around it"],
  brush: ["Brush", "Drag: paint. Right-drag or Shift + drag: erase"],
  polygon: ["Polygon", "Click corners, double-click or Enter to close"],
};
const KEYS = [
  ["Wheel, ↑ ↓, Page ↑ ↓", "slice"],
  ["Drag, Alt + arrows", "window and level"],
  ["Click, Shift + arrows", "crosshair"],
  ["Ctrl + wheel, right-drag, + −", "zoom"],
  ["Shift + drag, middle-drag", "pan"],
  ["Double-click, M", "large plane"],
  ["O", "labels on and off"],
  ["B", "borders or areas"],
  ["X", "crosshair on and off"],
  ["I", "invert"],
  ["R", "radiological or neurological"],
  ["0", "as at the beginning"],
  ["Delete", "remove the last measurement"],
];

function button(name, label, hint, action) {
  const made = make("button", "tool", { type: "button", title: hint, "aria-label": hint ? `${label}. ${hint}` : label });
  put(made, icon(name), make("span", "word", { text: label }));
  made.addEventListener("click", action);
  return made;
}

function field(text, control) {
  return put(make("label", "field"), make("span", "name", { text }), control);
}

function buildBar(ui) {
  const bar = make("div", "bar", { role: "toolbar", "aria-label": "Image tools" });
  const tools = make("div", "group");
  ui.toolButtons = {};
  for (const [tool, sign, label, hint] of TOOLS) {
    ui.toolButtons[tool] = button(sign, label, hint, () => ui.setTool(tool));
    put(tools, ui.toolButtons[tool]);
  }
  ui.promptButton = button("prompt", "Prompt", "", () => ui.setTool(ui.head.mode));
  ui.promptButton.classList.add("prompt");
  put(tools, ui.promptButton);
  const view = make("div", "group");
  ui.presetSelect = make("select", "preset");
  ui.presetSelect.addEventListener("change", () => {
    const found = ui.presets().find((one) => one.name === ui.presetSelect.value);
    if (found) ui.setWindow(found.window, found.level, found.name);
  });
  ui.channelSelect = make("select", "channel");
  ui.channelSelect.addEventListener("change", () => ui.setChannel(Number(ui.channelSelect.value)));
  ui.sideSelect = make("select", "side");
  for (const side of ["Radiological", "Neurological"]) put(ui.sideSelect, make("option", "", { text: side, value: side }));
  ui.sideSelect.addEventListener("change", () => ui.setView({ radiological: ui.sideSelect.value === "Radiological" }));
  ui.channelField = field("Channel", ui.channelSelect);
  ui.sideField = field("Convention", ui.sideSelect);
  put(view, field("Preset", ui.presetSelect), ui.channelField, ui.sideField);
  const more = make("div", "group");
  ui.invertButton = button("invert", "Invert", "Dark for bright", () => ui.setView({ invert: !ui.view.invert }));
  ui.layoutButton = button("layout", "Layout", "One plane or all planes", () => ui.setView({ single: !ui.view.single }));
  const keys = button("help", "Keys", "Mouse and keyboard", () => {
    ui.help.hidden = !ui.help.hidden;
    keys.setAttribute("aria-expanded", String(!ui.help.hidden));
  });
  keys.setAttribute("aria-expanded", "false");
  put(more, ui.invertButton, ui.layoutButton, button("reset", "Reset", "Window, zoom and position as at the beginning", () => ui.reset()), keys);
  return put(bar, tools, view, more);
}

function buildHelp(ui) {
  ui.help = make("div", "help", { role: "note" });
  ui.help.hidden = true;
  const list = make("dl");
  for (const [keys, what] of KEYS) {
    put(list, put(make("div"), make("dt", "", { text: keys }), make("dd", "", { text: what })));
  }
  return put(ui.help, list);
}

function buildPanel(ui) {
  const panel = make("aside", "panel", { "aria-label": "Labels and measurements" });
  ui.labelsPart = make("section", "labels");
  const head = make("div", "head");
  ui.labelsSwitch = make("input", "", { type: "checkbox", "aria-label": "Show labels" });
  ui.labelsSwitch.addEventListener("change", () => ui.setView({ labels: ui.labelsSwitch.checked }));
  put(head, put(make("label", "switch"), ui.labelsSwitch, make("span", "", { text: "Labels" })));
  ui.opacity = make("input", "opacity", { type: "range", min: "0", max: "1", step: "0.05", "aria-label": "Opacity of the labels" });
  ui.opacity.addEventListener("input", () => ui.setView({ opacity: Number(ui.opacity.value) }));
  ui.opacityText = make("output", "");
  ui.outlineSwitch = make("input", "", { type: "checkbox" });
  ui.outlineSwitch.addEventListener("change", () => ui.setView({ outline: ui.outlineSwitch.checked }));
  ui.heatSwitch = make("input", "", { type: "checkbox" });
  ui.heatSwitch.addEventListener("change", () => ui.setView({ heat: ui.heatSwitch.checked }));
  ui.heatField = put(make("label", "switch"), ui.heatSwitch, make("span", "", { text: "Probability" }));
  ui.heatScale = put(make("div", "heat-scale"), make("span", "", { text: "0" }), make("i"), make("span", "", { text: "1" }));
  const rows = make("div", "rows", { role: "table", "aria-label": "Classes" });
  ui.legendRows = rows;
  put(
    ui.labelsPart,
    head,
    put(make("div", "opacity-line"), make("span", "name", { text: "Opacity" }), ui.opacity, ui.opacityText),
    put(make("div", "switches"), put(make("label", "switch"), ui.outlineSwitch, make("span", "", { text: "Outline only" })), ui.heatField),
    ui.heatScale,
    rows,
  );
  ui.noLabels = make("p", "none", { text: "No mask yet." });
  ui.measurePart = make("section", "measured");
  ui.measureRows = make("ul");
  put(ui.measurePart, put(make("div", "head"), make("span", "", { text: "Measurements" })), ui.measureRows);
  ui.imagePart = make("section", "about");
  return put(panel, ui.labelsPart, ui.noLabels, ui.measurePart, ui.imagePart);
}

function fillLegend(ui) {
  const { head, view } = ui;
  const rows = ui.legendRows;
  rows.replaceChildren();
  for (const row of head.legend) {
    const line = make("label", "row", { role: "row" });
    const box = make("input", "", { type: "checkbox", "aria-label": `Show ${row.name}` });
    box.checked = !view.hidden.has(row.name);
    box.addEventListener("change", () => ui.hide(row.name, !box.checked));
    const swatch = make("i", "swatch");
    swatch.style.background = row.colour;
    const unit = head.shape.length === 3 ? "voxels" : "pixels";
    const size = row.size === null ? "" : `${sized(row.size)} ${row.unit}`;
    put(
      line, box, swatch,
      make("span", "what", { text: row.name, title: row.name }),
      make("span", "size", { text: size }),
      make("span", "count", { text: `${grouped(row.count)} ${unit}` }),
    );
    rows.appendChild(line);
  }
}

function fillMeasures(ui) {
  ui.measurePart.hidden = !ui.measures.length;
  ui.measureRows.replaceChildren();
  ui.measures.forEach((m, i) => {
    const plane = ui.head.planes.find((p) => p.axis === m.axis);
    const line = make("li");
    const where = m.axis === null ? "" : `${m.plane} ${Math.round(m.points[0][m.axis]) + 1}`;
    const go = make("button", "link", { type: "button", text: where || m.kind, title: "Go there" });
    go.addEventListener("click", () => m.axis !== null && ui.setSlice(plane, Math.round(m.points[0][m.axis])));
    const drop = make("button", "drop", { type: "button", text: "×", "aria-label": `Remove ${m.kind} ${i + 1}` });
    drop.addEventListener("click", () => {
      ui.measures = ui.measures.filter((one) => one !== m);
      ui.tellMeasures();
      ui.redraw();
    });
    put(line, go, make("span", "size", { text: sizeText(ui.head, m.kind, m.points, plane) }), drop);
    ui.measureRows.appendChild(line);
  });
}

function fillAbout(ui) {
  const { head } = ui;
  const list = make("dl");
  const add = (name, text) => text && put(list, make("dt", "", { text: name }), make("dd", "", { text }));
  add("Size", head.shape.length === 2 ? `${head.shape[1]} × ${head.shape[0]}` : head.shape.join(" × "));
  if (head.spacing) add("Spacing", `${head.spacing.map((s) => short(Number(s.toPrecision(3)))).join(" × ")} mm`);
  if (head.tilt >= 0.5) add("Oblique", `${head.tilt}° from the body's axes; letters are the nearest`);
  ui.imagePart.replaceChildren(put(make("div", "head"), make("span", "", { text: head.name || "Image" })), list);
}

function buildReadout(ui) {
  const line = make("div", "readout");
  ui.read = {};
  for (const [name, text] of [["index", "Voxel"], ["mm", "RAS+ mm"], ["value", "Value"], ["label", "Label"], ["probability", "Probability"]]) {
    const part = make("span", `part ${name}`);
    ui.read[name] = make("b", "", { text: "–" });
    ui.read[`${name}Part`] = part;
    put(part, make("span", "name", { text }), ui.read[name]);
    put(line, part);
  }
  ui.hint = make("span", "hint");
  return put(line, ui.hint);
}

function updateControls(ui) {
  const { head, view } = ui;
  for (const [tool, one] of Object.entries(ui.toolButtons)) one.setAttribute("aria-pressed", String(ui.tool === tool));
  const prompt = PROMPT_HINTS[head.mode];
  ui.promptButton.hidden = !prompt;
  ui.promptButton.setAttribute("aria-pressed", String(ui.tool === head.mode));
  if (prompt) {
    ui.promptButton.querySelector(".word").textContent = prompt[0];
    ui.promptButton.title = prompt[1];
    ui.promptButton.setAttribute("aria-label", `${prompt[0]}. ${prompt[1]}`);
  }
  const hint = TOOLS.find(([tool]) => tool === ui.tool)?.[3] || PROMPT_HINTS[ui.tool]?.[1] || "";
  const flat = ui.tool === "look" && head.planes[0].axis === null;
  ui.hint.textContent = flat ? "Drag: window and level. Wheel: zoom. Shift + drag: move" : hint;
  const names = ["Own", ...head.presets.map((p) => p.name)].join("|");
  if (ui.presetSelect.dataset.names !== names) {
    ui.presetSelect.dataset.names = names;
    ui.presetSelect.replaceChildren(...head.presets.map((p) => make("option", "", { text: p.name, value: p.name })), make("option", "", { text: "Own", value: "" }));
  }
  const same = ui.presets().find((p) => Math.abs(p.window - view.window) < 1e-9 && Math.abs(p.level - view.level) < 1e-9);
  ui.presetSelect.value = view.preset || same?.name || "";
  ui.channelField.hidden = head.channels.length < 2 || head.colour;
  if (ui.channelSelect.dataset.names !== head.channels.join("|")) {
    ui.channelSelect.dataset.names = head.channels.join("|");
    ui.channelSelect.replaceChildren(...head.channels.map((c, i) => make("option", "", { text: c, value: String(i) })));
  }
  ui.channelSelect.value = String(view.channel);
  ui.sideField.hidden = !head.affine || head.planes[0].axis === null;
  ui.sideSelect.value = view.radiological ? "Radiological" : "Neurological";
  ui.invertButton.setAttribute("aria-pressed", String(view.invert));
  ui.layoutButton.hidden = head.planes.length < 2;
  ui.layoutButton.setAttribute("aria-pressed", String(view.single));
  const has = head.layers.includes("mask");
  ui.labelsPart.hidden = !has;
  ui.noLabels.hidden = has;
  ui.labelsSwitch.checked = view.labels;
  ui.opacity.value = String(view.opacity);
  ui.opacityText.textContent = `${Math.round(view.opacity * 100)} %`;
  ui.outlineSwitch.checked = view.outline;
  ui.heatField.hidden = !head.layers.includes("probability");
  ui.heatSwitch.checked = view.heat;
  ui.heatScale.hidden = !view.heat || ui.heatField.hidden;
  ui.read.probabilityPart.hidden = ui.heatField.hidden;
  ui.read.labelPart.hidden = !has;
  ui.read.mmPart.hidden = !head.affine && !head.spacing;
  ui.read.mmPart.firstChild.textContent = head.affine ? "RAS+ mm" : "mm";
  ui.read.indexPart.firstChild.textContent = head.shape.length === 3 ? "Voxel" : "Pixel";
}
