// Bands and stretch above the map, classes beside it, coordinates below.

Object.assign(ICONS, {
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
});
const STRETCHES = [["2-98", "2 – 98 %"], ["1-99", "1 – 99 %"], ["5-95", "5 – 95 %"], ["0.5-99.5", "0.5 – 99.5 %"], ["0-100", "All values"]];
const PROMPTS = {
  point: ["Points", "Click: this belongs to it. Right-click or Shift + click: this does not"],
  box: ["Box", "Drag: a box around it. Shift + drag: move"],
};
const KEYS = [
  ["Wheel, + −, double-click", "zoom"],
  ["Drag, arrows", "move (Shift + arrows: further)"],
  ["0", "all of the scene"],
  ["1", "one pixel on one of the screen"],
  ["O", "classes on and off"],
  ["B", "borders or areas"],
];

function button(name, label, hint, action, words = true) {
  const made = make("button", "tool", { type: "button", title: hint || label, "aria-label": hint ? `${label}. ${hint}` : label });
  put(made, icon(name), words ? make("span", "word", { text: label }) : null);
  made.addEventListener("click", action);
  return made;
}

function field(text, control) {
  control.setAttribute("aria-label", text); // else the options of a list count as its name, for some readers
  return put(make("label", "field"), make("span", "name", { text }), control);
}

function picker(change) {
  const made = make("select");
  made.addEventListener("change", () => change(made.value));
  return made;
}

function fillSelect(select, options) {
  const key = JSON.stringify(options);
  if (select.dataset.options === key) return;
  select.dataset.options = key;
  select.replaceChildren(...options.map(([value, text]) => make("option", "", { text, value })));
}

function buildBar(ui) {
  const bar = make("div", "bar", { role: "toolbar", "aria-label": "Map tools" });
  ui.sensorSelect = picker((title) => {
    ui.sensor = title;
    const [one] = ui.composites();
    if (one) ui.setView({ bands: [...one.bands] });
  });
  ui.compositeSelect = picker((title) => {
    const found = ui.composites().find((one) => one.title === title);
    if (found) ui.setView({ bands: [...found.bands] });
  });
  ui.bandSelects = [0, 1, 2].map((k) => picker((value) => ui.setView({ bands: ui.view.bands.map((b, i) => (i === k ? Number(value) : b)) })));
  const names = ["Red", "Green", "Blue"];
  const bands = make("span", "bands");
  ui.bandSelects.forEach((select, k) => {
    select.setAttribute("aria-label", `Band shown as ${names[k].toLowerCase()}`);
    select.classList.add("band", names[k].toLowerCase());
    put(bands, select);
  });
  ui.bandsField = put(make("span", "field"), make("span", "name", { text: "R G B" }), bands);
  ui.sensorField = field("Sensor", ui.sensorSelect);
  ui.compositeField = field("Bands", ui.compositeSelect);
  ui.stretchSelect = picker((stretch) => ui.setView({ stretch }));
  fillSelect(ui.stretchSelect, STRETCHES);
  ui.gamma = make("input", "gamma", { type: "range", min: "0.4", max: "2.5", step: "0.05", "aria-label": "Gamma" });
  ui.gamma.addEventListener("input", () => ui.setView({ gamma: Number(ui.gamma.value) }));
  ui.gammaText = make("output");
  put(bar, put(make("div", "group"), ui.sensorField, ui.compositeField, ui.bandsField));
  put(bar, put(make("div", "group"), field("Stretch", ui.stretchSelect), put(make("label", "field"), make("span", "name", { text: "Gamma" }), ui.gamma, ui.gammaText)));
  const keys = button("help", "Keys", "Mouse and keyboard", () => {
    ui.help.hidden = !ui.help.hidden;
    keys.setAttribute("aria-expanded", String(!ui.help.hidden));
  });
  keys.setAttribute("aria-expanded", "false");
  ui.lookButton = button("pan", "Move", "Drag: move the map", () => ui.setTool("look"));
  ui.promptButton = button("prompt", "Prompt", "", () => ui.setTool(ui.head.mode));
  put(bar, put(make("div", "group last"), ui.lookButton, ui.promptButton, button("reset", "Reset", "Bands, stretch and place as at the beginning", () => ui.reset()), keys));
  return bar;
}

function buildHelp(ui) {
  ui.help = make("div", "help", { role: "note" });
  ui.help.hidden = true;
  const list = make("dl");
  for (const [keys, what] of KEYS) put(list, put(make("div"), make("dt", "", { text: keys }), make("dd", "", { text: what })));
  return put(ui.help, list);
}

function buildZoom(ui) {
  const zoom = make("div", "zoom", { role: "group", "aria-label": "Zoom" });
  return put(
    zoom,
    button("plus", "Zoom in", "", () => ui.zoom(1.5), false),
    button("minus", "Zoom out", "", () => ui.zoom(1 / 1.5), false),
    button("fit", "All of the scene", "", () => ui.fit(), false),
  );
}

function buildPanel(ui) {
  const panel = make("aside", "panel", { "aria-label": "Classes" });
  ui.labelsPart = make("section", "labels");
  ui.labelsSwitch = make("input", "", { type: "checkbox" });
  ui.labelsSwitch.addEventListener("change", () => ui.setView({ labels: ui.labelsSwitch.checked }));
  ui.opacity = make("input", "opacity", { type: "range", min: "0", max: "1", step: "0.05", "aria-label": "Opacity of the classes" });
  ui.opacity.addEventListener("input", () => ui.setView({ opacity: Number(ui.opacity.value) }));
  ui.opacityText = make("output");
  ui.outlineSwitch = make("input", "", { type: "checkbox" });
  ui.outlineSwitch.addEventListener("change", () => ui.setView({ outline: ui.outlineSwitch.checked }));
  ui.legendRows = make("div", "rows", { "aria-label": "Classes and their areas" });
  put(
    ui.labelsPart,
    put(make("div", "head"), put(make("label", "switch"), ui.labelsSwitch, make("span", "", { text: "Classes" }))),
    put(make("div", "opacity-line"), make("span", "name", { text: "Opacity" }), ui.opacity, ui.opacityText),
    put(make("div", "switches"), put(make("label", "switch"), ui.outlineSwitch, make("span", "", { text: "Outline only" }))),
    ui.legendRows,
  );
  ui.noLabels = make("p", "none", { text: "No mask yet." });
  ui.aboutPart = make("section", "about");
  return put(panel, ui.labelsPart, ui.noLabels, ui.aboutPart);
}

function areaText(row) {
  if (row.ha === null) return "";
  return row.ha >= 0.01 || row.ha === 0 ? `${spaced(row.ha.toFixed(2))} ha` : `${row.ha.toPrecision(2)} ha`;
}

function fillLegend(ui) {
  ui.legendRows.replaceChildren();
  for (const row of ui.head.legend) {
    const line = make("label", "row");
    const box = make("input", "", { type: "checkbox", "aria-label": `Show ${row.name}` });
    box.checked = !ui.view.hidden.has(row.name);
    box.addEventListener("change", () => {
      const hidden = new Set(ui.view.hidden);
      if (box.checked) hidden.delete(row.name);
      else hidden.add(row.name);
      ui.setView({ hidden });
    });
    const swatch = make("i", "swatch");
    swatch.style.background = row.colour;
    const metres = row.m2 === null ? "" : `${spaced(row.m2.toFixed(0))} m² · `;
    put(
      line, box, swatch,
      make("span", "what", { text: row.name, title: row.name }),
      make("span", "size", { text: areaText(row) }),
      make("span", "count", { text: `${metres}${grouped(row.pixels)} pixels` }),
    );
    ui.legendRows.appendChild(line);
  }
}

function fillAbout(ui) {
  const { head } = ui;
  const list = make("dl");
  const add = (name, text) => text && put(list, make("dt", "", { text: name }), make("dd", "", { text }));
  add("System", head.place.title);
  add("Code", head.place.code);
  add("Size", `${spaced(String(head.shape[1]))} × ${spaced(String(head.shape[0]))}`);
  const [down, across] = head.spacing.map((s) => String(Number(s.toPrecision(6))));
  add("Pixel", `${across === down ? across : `${across} × ${down}`} ${head.place.units}`);
  const metres = between(head, "across", head.shape[1] / 2, head.shape[0] / 2);
  if (metres && (head.place.geographic || Math.abs(metres / head.spacing[1] - 1) > 0.01)) add("On the ground", `${short(Number(metres.toPrecision(4)))} m`);
  add("Stored as", head.dtype);
  ui.aboutPart.replaceChildren(put(make("div", "head"), make("span", "", { text: "Scene" })), list);
}

function buildReadout(ui) {
  const line = make("div", "readout");
  ui.read = {};
  for (const [name, text] of [["pixel", "Column, row"], ["world", "x, y"], ["lonlat", "Lat, lon"], ["value", "Value"], ["label", "Class"]]) {
    const part = make("span", `part ${name}`);
    ui.read[name] = make("b", "", { text: "–" });
    ui.read[`${name}Part`] = part;
    put(part, make("span", "name", { text }), ui.read[name]);
    put(line, part);
  }
  ui.level = make("span", "hint");
  return put(line, ui.level);
}

function updateControls(ui) {
  const { head, view } = ui;
  fillSelect(ui.sensorSelect, head.sensors.map((s) => [s.title, s.title]));
  ui.sensorSelect.value = ui.sensor;
  ui.sensorField.hidden = head.sensors.length < 2;
  const own = ui.composites().find((one) => one.bands.join() === view.bands.join());
  fillSelect(ui.compositeSelect, [...ui.composites().map((one) => [one.title, one.title]), ["", "Own choice"]]);
  ui.compositeSelect.value = own?.title || "";
  ui.compositeField.hidden = !ui.composites().length;
  for (const [k, select] of ui.bandSelects.entries()) {
    fillSelect(select, head.channels.map((name, i) => [String(i), name]));
    select.value = String(view.bands[k]);
  }
  ui.bandsField.hidden = head.channels.length < 2;
  ui.stretchSelect.value = view.stretch;
  ui.gamma.value = String(view.gamma);
  ui.gammaText.textContent = view.gamma.toFixed(2);
  const prompt = PROMPTS[head.mode];
  ui.promptButton.hidden = ui.lookButton.hidden = !prompt;
  ui.lookButton.setAttribute("aria-pressed", String(ui.tool === "look"));
  ui.promptButton.setAttribute("aria-pressed", String(ui.tool === head.mode));
  if (prompt) {
    ui.promptButton.querySelector(".word").textContent = prompt[0];
    ui.promptButton.title = prompt[1];
    ui.promptButton.setAttribute("aria-label", prompt.join(". "));
  }
  const has = head.layers.includes("mask");
  ui.labelsPart.hidden = !has;
  ui.noLabels.hidden = has;
  ui.labelsSwitch.checked = view.labels;
  ui.opacity.value = String(view.opacity);
  ui.opacityText.textContent = `${Math.round(view.opacity * 100)} %`;
  ui.outlineSwitch.checked = view.outline;
  ui.read.labelPart.hidden = !has;
  ui.read.lonlatPart.hidden = !head.place.nodes;
  ui.read.worldPart.hidden = head.place.geographic;
}
