// The component: what is seen stays in the browser; Python is asked for tiles and told of clicks.

const AT_ONCE = 24; // tiles per request: what is seen comes from the middle outwards
const AHEAD = 8; // tiles per request of what may be seen next
const REST = 120; // ms without a move before that is asked for
const PATIENCE = 4000; // ms until a request counts as lost
const pages = new Map(); // key of the component -> Ui; stays when Streamlit mounts it anew

class Ui {
  constructor() {
    this.kept = new Kept();
    this.painted = new Painted();
    this.view = null;
    this.tool = "look";
    this.drafts = [];
    this.untold = [];
    this.serial = 0;
    this.asked = null;
    this.unpacking = 0;
    this.moved = 0;
  }

  // ---- from Python

  receive(message) {
    const { header, blobs } = readMessage(message);
    const before = this.head;
    this.head = header;
    this.aspect = header.spacing[0] / header.spacing[1];
    if (before?.versions.image !== header.versions.image) this.adopt();
    if (before?.mode !== header.mode) this.setTool(header.mode);
    if (before && (header.told > before.told || header.versions.mask !== before.versions.mask || header.marks_id !== before.marks_id)) {
      this.drafts = this.drafts.filter((d) => (d.serial || Infinity) > header.told);
    }
    this.untold = this.untold.filter((event) => event.serial > header.told);
    this.box.setAttribute("aria-busy", String(this.untold.length > 0));
    this.stage.style.height = `${header.height}px`;
    if (JSON.stringify(before?.legend) !== JSON.stringify(header.legend)) fillLegend(this);
    if (before?.versions.image !== header.versions.image) fillAbout(this);
    updateControls(this);
    this.unpacking++;
    Promise.all(header.slabs.map(async (place, i) => {
      if (!this.kept.has(place.key)) this.kept.put(place.key, await unpackSlab(place, blobs[i]));
    })).finally(() => this.unpacking--).then(() => {
      // A run that was broken off answers without tiles: they are asked for again.
      if (this.asked && header.answers >= this.asked.serial) this.asked = null;
      this.redraw();
    });
  }

  adopt() {
    const own = this.view || { opacity: 0.5, outline: false, labels: true };
    this.drafts = [];
    this.sensor = this.head.sensors[0]?.title || "";
    this.view = { ...own, x: 0, y: 0, scale: 0, bands: [...this.head.bands], stretch: "2-98", gamma: 1, hidden: new Set() };
  }

  composites() {
    return this.head.sensors.find((s) => s.title === this.sensor)?.composites || [];
  }

  // Bands of a tile, in one order whatever the colours: their choice by people need not fetch them again.
  get order() {
    return [...new Set(this.view.bands)].sort((a, b) => a - b);
  }

  keys({ level, row, column }) {
    const layers = this.view.labels ? this.head.layers : this.head.layers.filter((l) => l !== "mask");
    return tileKeys(this.head, this.order.join("-"), level, row, column, layers);
  }

  slab(layer, { level, row, column }) {
    return this.kept.get(tileKeys(this.head, this.order.join("-"), level, row, column, [layer])[0]);
  }

  // ---- to Python

  ask() {
    clearTimeout(this.later);
    if (this.unpacking) return; // what is lacking may be among it; then this is called again
    const level = levelOf(this);
    const lacking = (tiles) => tiles.filter((tile) => this.keys(tile).some((key) => !this.kept.has(key)));
    const top = { level: this.head.levels - 1, row: 0, column: 0 };
    let wanted = lacking(seen(this, level)).slice(0, AT_ONCE);
    // The whole scene at once, coarse, so that nothing stays blank.
    if (lacking([top]).length) wanted = [top, ...wanted];
    const waits = this.asked && performance.now() - this.asked.at < PATIENCE;
    // What is seen does not wait for what may be seen next.
    if (waits && !(this.asked.ahead && wanted.length)) {
      this.later = setTimeout(() => this.ask(), PATIENCE);
      return;
    }
    const ahead = !wanted.length;
    if (ahead) {
      const rested = performance.now() - this.moved;
      if (rested < REST) {
        this.later = setTimeout(() => this.ask(), REST - rested + 1);
        return;
      }
      wanted = lacking(this.ahead()).slice(0, AHEAD);
    }
    const tiles = wanted.flatMap((tile) => this.keys(tile)).filter((key) => !this.kept.has(key));
    if (!tiles.length) return;
    this.asked = { serial: this.next(), at: performance.now(), ahead };
    this.send("want", { serial: this.asked.serial, tiles });
    this.later = setTimeout(() => this.ask(), PATIENCE);
  }

  // What one turn of the wheel or a short drag shows: coarser, finer where the mouse is (else at the middle), and around.
  ahead() {
    const level = levelOf(this);
    const coarser = level + 1 < this.head.levels ? seen(this, level + 1) : [];
    const finer = level > 0 ? seen(this, level - 1, 0, this.over && toImage(this, this.over.x, this.over.y)).slice(0, AT_ONCE) : [];
    return [...coarser, ...finer, ...seen(this, level, 1)];
  }

  next() {
    this.serial = Math.max(Date.now(), this.serial + 1);
    return this.serial;
  }

  tell(kind, points, more = {}) {
    if (!this.head.report.includes(kind)) return;
    const cross = [Math.floor(this.view.y), Math.floor(this.view.x)];
    const event = { kind, serial: this.next(), points, cross, label: this.head.label, positive: true, ...more };
    for (const draft of this.drafts) draft.serial ||= event.serial;
    this.untold.push(event);
    this.flush();
  }

  // Until Python says that it has them.
  flush() {
    clearTimeout(this.retry);
    this.box.setAttribute("aria-busy", String(this.untold.length > 0));
    if (!this.untold.length) return;
    this.send("event", this.untold);
    this.retry = setTimeout(() => this.flush(), PATIENCE);
  }

  // ---- changes of what is seen

  setView(change) {
    Object.assign(this.view, change);
    if ("x" in change || "scale" in change) {
      const [rows, columns] = this.head.shape;
      this.view.x = clamp(this.view.x, 0, columns);
      this.view.y = clamp(this.view.y, 0, rows);
      this.since ||= performance.now();
      this.moved = performance.now();
    } else updateControls(this);
    this.redraw();
  }

  // Keeps the place under `at` (the middle, when not given) where it is.
  zoom(factor, at = null) {
    const { x, y, scale } = this.view;
    const made = clamp(scale * factor, Math.min(fitting(this), 1) / 2, 40);
    const [column, row] = at ? [at.column, at.row] : [x, y];
    const kept = scale / made;
    this.setView({ scale: made, x: column - (column - x) * kept, y: row - (row - y) * kept });
    this.live.textContent = `One pixel of the scene is ${short(Number(made.toPrecision(2)))} of the screen`;
  }

  fit() {
    const [rows, columns] = this.head.shape;
    this.setView({ x: columns / 2, y: rows / 2, scale: fitting(this) });
  }

  reset() {
    this.setView({ bands: [...this.head.bands], stretch: "2-98", gamma: 1 });
    this.sensor = this.head.sensors[0]?.title || "";
    updateControls(this);
    this.fit();
  }

  setTool(tool) {
    this.tool = tool;
    this.box.dataset.tool = tool;
    updateControls(this);
    this.redraw();
  }

  // ---- the page

  mount(parent) {
    if (this.parent === parent) return;
    this.parent = parent;
    this.box = make("div", "map", { "data-tool": this.tool });
    this.stage = make("div", "stage");
    this.canvas = make("canvas", "screen", { tabindex: "0", role: "img", "aria-roledescription": "map" });
    this.live = make("div", "unseen", { "aria-live": "polite" });
    put(this.stage, this.canvas, buildZoom(this));
    const middle = put(make("div", "middle"), this.stage, buildPanel(this));
    put(this.box, buildBar(this), buildHelp(this), middle, buildReadout(this), this.live);
    parent.querySelector(".map-root").replaceChildren(this.box);
    new ResizeObserver(() => this.redraw()).observe(this.stage);
    listen(this);
    if (this.head) {
      fillLegend(this);
      fillAbout(this);
    }
  }

  redraw() {
    if (this.drawing || !this.head) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.paint();
      this.readOut();
      if (this.wide && this.high) this.ask();
    });
  }

  paint() {
    const dense = window.devicePixelRatio || 1;
    [this.wide, this.high] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!this.wide || !this.high) return;
    if (!this.view.scale) {
      const [rows, columns] = this.head.shape;
      Object.assign(this.view, { x: columns / 2, y: rows / 2, scale: fitting(this) });
    }
    if (this.canvas.width !== Math.round(this.wide * dense) || this.canvas.height !== Math.round(this.high * dense)) {
      this.canvas.width = Math.round(this.wide * dense);
      this.canvas.height = Math.round(this.high * dense);
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(dense, 0, 0, dense, 0, 0);
    context.clearRect(0, 0, this.wide, this.high); // nodata shows the chequers behind
    const level = levelOf(this);
    const shown = seen(this, level);
    const complete = shown.every((tile) => this.keys(tile).every((key) => this.kept.has(key)));
    // Coarser ones stand in for what is on its way.
    if (!complete) for (let coarse = this.head.levels - 1; coarse > level; coarse--) this.paintLevel(context, seen(this, coarse));
    this.paintLevel(context, shown, true);
    paintMarks(this, context);
    paintScaleBar(this, context);
    paintNorth(this, context);
    this.box.classList.toggle("waiting", !complete);
    this.box.dataset.level = String(level);
    this.box.dataset.at = [this.view.x, this.view.y, this.view.scale].join();
    if (complete && this.since) {
      this.box.dataset.took = String(Math.round(performance.now() - this.since)); // ms from the wheel to all tiles
      this.since = 0;
    }
    const names = this.view.bands.map((b) => this.head.channels[b]).join(", ");
    const classes = this.head.legend.length && this.view.labels ? `; classes: ${this.head.legend.map((r) => r.name).join(", ")}` : "";
    this.canvas.setAttribute("aria-label", `${this.head.name || "Scene"}, map of bands ${names}${classes}`);
  }

  paintLevel(context, tiles, sharp = false) {
    const { view, head, painted } = this;
    const how = `${view.bands.join()}|${view.stretch}|${view.gamma}`;
    const hidden = [...view.hidden].sort().join("|");
    const grown = view.scale * 2 ** (tiles[0]?.level || 0); // screen pixels per pixel of a tile
    for (const tile of tiles) {
      const image = this.slab("image", tile);
      const valid = head.lacks ? this.slab("valid", tile) : null;
      if (!image || (head.lacks && !valid)) continue;
      const place = placeOf(this, tile, image);
      const [key] = this.keys(tile);
      context.imageSmoothingEnabled = grown < 3;
      // What stood in for it would show through where this one holds nothing.
      context.clearRect(place.x, place.y, place.w, place.h);
      context.drawImage(painted.once(`${key}|${how}`, () => paintTile(head, view, this.order, image, valid)), place.x, place.y, place.w, place.h);
    }
    if (!view.labels || !head.layers.includes("mask")) return;
    context.imageSmoothingEnabled = false;
    for (const tile of tiles) {
      const labels = this.slab("mask", tile);
      if (!labels || !this.slab("image", tile)) continue;
      const place = placeOf(this, tile, labels);
      const key = `${tileKeys(head, "", tile.level, tile.row, tile.column, ["mask"])[0]}|${hidden}`;
      if (!view.outline) {
        context.globalAlpha = view.opacity;
        context.drawImage(painted.once(`${key}|area`, () => paintLabels(head, labels, view.hidden)), place.x, place.y, place.w, place.h);
      }
      context.globalAlpha = view.outline ? 1 : Math.min(1, view.opacity * 1.5);
      if (grown < 2.5) {
        context.drawImage(painted.once(`${key}|border`, () => paintBorders(head, labels, view.hidden)), place.x, place.y, place.w, place.h);
      } else if (sharp) this.strokeBorders(context, place, painted.once(`${key}|lines`, () => borderPaths(head, labels, view.hidden)));
      context.globalAlpha = 1;
    }
  }

  strokeBorders(context, place, lines) {
    const toPixels = new DOMMatrix([place.w / place.columns, 0, 0, place.h / place.rows, place.x, place.y]);
    context.lineWidth = 2;
    for (const { path, colour } of lines) {
      const there = new Path2D();
      there.addPath(path, toPixels);
      context.strokeStyle = colour;
      context.stroke(there);
    }
  }

  // Under the mouse, or in the middle of the map when the mouse is elsewhere.
  readOut() {
    const { head, view, read } = this;
    if (!head || !this.wide) return;
    const at = this.over ? toImage(this, this.over.x, this.over.y) : { column: view.x, row: view.y };
    const inside = at.column >= 0 && at.row >= 0 && at.column < head.shape[1] && at.row < head.shape[0];
    const [column, row] = [Math.floor(at.column), Math.floor(at.row)];
    read.pixel.textContent = inside ? `${column}, ${row}` : "–";
    read.world.textContent = inside ? worldText(head, at.column, at.row) : "–";
    read.lonlat.textContent = inside ? lonLatText(head, at.column, at.row) || "–" : "–";
    const level = levelOf(this);
    const side = head.tile * 2 ** level;
    const tile = { level, row: Math.floor(row / side), column: Math.floor(column / side) };
    const pick = (slab, c = 0) => slab.values[c * slab.rows * slab.columns + Math.floor((row % side) / 2 ** level) * slab.columns + Math.floor((column % side) / 2 ** level)];
    const image = inside && this.slab("image", tile);
    const valid = inside && head.lacks && this.slab("valid", tile);
    const empty = valid && !pick(valid);
    const order = this.order;
    read.value.textContent = !image ? "–" : empty ? "no data" : [...new Set(view.bands)].map((b) => `${head.channels[b]} ${short(pick(image, order.indexOf(b)))}`).join(", ");
    const labels = inside && this.slab("mask", tile);
    const value = labels ? pick(labels) : undefined;
    const names = !labels ? [] : head.exclusive ? [head.classes[value]?.name] : head.classes.filter((_, c) => (value >> c) & 1).map((c) => c.name);
    read.label.textContent = empty ? "–" : names.filter(Boolean).join(", ") || "–";
    this.level.textContent = level ? `Seen at 1 : ${2 ** level}; values are means` : "At full resolution";
  }
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  if (!data || !data.length) return;
  const bytes = data instanceof Uint8Array ? data : new Uint8Array(data);
  const { key } = readMessage(bytes).header;
  if (!pages.has(key)) pages.set(key, new Ui());
  const ui = pages.get(key);
  ui.send = (name, value) => setTriggerValue(name, value);
  ui.mount(parentElement);
  ui.receive(bytes);
}
