// The component: what is seen stays in the browser; Python is asked for slices and told of clicks.

const AHEAD = 8; // slices read before they are scrolled to
const AT_ONCE = 6; // slices per request when nobody waits for them
const PATIENCE = 2500; // ms until a request counts as lost
const pages = new Map(); // key of the component -> Ui; stays when Streamlit mounts it anew

class Ui {
  constructor() {
    this.kept = new Kept();
    this.view = null;
    this.tool = "look";
    this.measures = [];
    this.measuring = null;
    this.drafts = [];
    this.untold = [];
    this.serial = 0;
    this.asked = null;
    this.viewports = [];
    this.directions = {};
  }

  // ---- from Python

  receive(message) {
    const { header, blobs } = readMessage(message);
    const before = this.head;
    this.head = header;
    if (!this.view || this.viewId !== header.view_id) this.adopt(header);
    if (before?.versions.image !== header.versions.image) this.forget(before !== undefined);
    if (before?.mode !== header.mode) this.setTool(header.mode === "measure" ? "length" : header.mode);
    // Marks are now what Python says they are; what it has not heard of yet stays.
    if (before && (header.told > before.told || header.versions.mask !== before.versions.mask || header.marks_id !== before.marks_id)) {
      this.drafts = this.drafts.filter((d) => (d.serial || Infinity) > header.told);
    }
    this.untold = this.untold.filter((event) => event.serial > header.told);
    this.box.setAttribute("aria-busy", String(this.untold.length > 0));
    this.box.dataset.marks = String(header.marks.length);
    this.radius = header.radius;
    this.labelColour = header.label_colour;
    this.build();
    fillLegend(this);
    fillAbout(this);
    fillMeasures(this);
    updateControls(this);
    Promise.all(header.slabs.map(async (place, i) => {
      if (!this.kept.has(place.key)) this.kept.put(place.key, await unpackSlab(place, blobs[i]));
    })).then(() => {
      if (this.asked && header.answers >= this.asked.serial) this.asked = null;
      this.redraw();
    });
  }

  adopt(header) {
    this.viewId = header.view_id;
    const own = this.view || { zoom: {}, smooth: true, invert: false, labels: true, crosshair: true, heat: false, single: false };
    const v = header.view;
    this.view = {
      ...own, cross: [...v.cross], window: v.window, level: v.level, channel: v.channel, opacity: v.opacity,
      outline: v.outline, hidden: new Set(v.hidden), radiological: v.radiological, preset: "",
    };
    this.main = this.main || header.planes[0].name;
  }

  // Another image: what was measured on the old one means nothing.
  forget(another) {
    this.measures = [];
    this.measuring = null;
    this.drafts = [];
    if (!another) return;
    this.view.zoom = {};
    this.adopt(this.head);
  }

  // ---- to Python

  keyOf(layer, plane, index) {
    const channel = layer === "image" && !this.head.colour ? this.view.channel : 0;
    return `${layer}:${this.head.versions[layer]}:${channel}:${plane.axis === null ? "None" : plane.axis}:${index}`;
  }

  missing(planes, index) {
    const found = [];
    for (const plane of planes) {
      for (const layer of this.head.layers) {
        const at = index(plane);
        if (!this.kept.has(this.keyOf(layer, plane, at))) found.push([layer, plane.axis, at, layer === "image" ? this.view.channel : 0]);
      }
    }
    return found;
  }

  shownPlanes() {
    const { planes } = this.head;
    return this.view.single ? planes.filter((p) => p.name === this.main) : planes;
  }

  ask() {
    if (this.asked && performance.now() - this.asked.at < PATIENCE) {
      clearTimeout(this.later);
      this.later = setTimeout(() => this.ask(), PATIENCE);
      return;
    }
    const at = (plane) => (plane.axis === null ? 0 : this.view.cross[plane.axis]);
    let wanted = this.missing(this.shownPlanes(), at);
    if (!wanted.length) wanted = this.ahead(at);
    if (!wanted.length) return;
    this.asked = { serial: this.next(), at: performance.now() };
    const { cross, window, level, channel } = this.view;
    this.send("want", { serial: this.asked.serial, slabs: wanted, cross, window, level, channel });
    clearTimeout(this.later);
    this.later = setTimeout(() => this.ask(), PATIENCE);
  }

  // Neighbours of the plane that was scrolled last, those in its direction first.
  ahead(at) {
    const plane = this.shownPlanes().find((p) => p.name === (this.scrolled || this.main));
    if (!plane || plane.axis === null) return [];
    const way = this.directions[plane.name] || 1;
    const places = [];
    for (let step = 1; step <= AHEAD; step++) places.push(at(plane) + way * step);
    for (let step = 1; step <= 3; step++) places.push(at(plane) - way * step);
    const inside = places.filter((i) => i >= 0 && i < this.head.shape[plane.axis]);
    return inside.flatMap((i) => this.missing([plane], () => i)).slice(0, AT_ONCE * this.head.layers.length);
  }

  next() {
    this.serial = Math.max(Date.now(), this.serial + 1);
    return this.serial;
  }

  tell(kind, viewport, points, more = {}) {
    if (!this.head.report.includes(kind)) return;
    const plane = viewport?.plane || this.head.planes[0];
    const event = { kind, serial: this.next(), plane: plane.name, axis: plane.axis, points, cross: this.view.cross, label: this.head.label, positive: true, radius: 0, ...more };
    for (const draft of this.drafts) draft.serial ||= event.serial;
    this.untold.push(event);
    this.flush();
  }

  tellMeasures(viewport) {
    fillMeasures(this);
    const all = this.measures.map(({ kind, plane, axis, points }) => {
      const shown = this.head.planes.find((p) => p.axis === axis);
      const size = kind === "length" ? lengthOf(this.head, points[0], points[1]) : areaOf(this.head, shown, points);
      return { kind, plane, axis, points, size, unit: `${this.head.spacing ? "mm" : "px"}${kind === "area" ? "²" : ""}` };
    });
    this.tell("measures", viewport, [], { measures: all });
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

  get spread() {
    return this.auto().spread;
  }

  auto(channel = this.view.channel) {
    return this.head.autos[channel] || this.head.autos[0];
  }

  // Channels differ in their values: a window by percentiles follows.
  setChannel(channel) {
    const [old, now] = [this.auto(), this.auto(channel)];
    const followed = this.view.window === old.window && this.view.level === old.level;
    this.setView({ channel, ...(followed ? { window: now.window, level: now.level } : {}) });
  }

  setView(change) {
    Object.assign(this.view, change);
    if (change.single !== undefined || change.radiological !== undefined || change.channel !== undefined) this.build();
    updateControls(this);
    this.redraw();
  }

  setWindow(window, level, preset) {
    this.setView({ window, level, preset });
  }

  presets() {
    const { window, level } = this.auto();
    return this.head.presets.map((p) => (p.name === this.head.auto ? { ...p, window, level } : p));
  }

  setZoom(plane, zoom) {
    this.setView({ zoom: { ...this.view.zoom, [plane.name]: zoom } });
  }

  setCross(index) {
    const inside = index.map((i, axis) => clamp(Math.round(i), 0, this.head.shape[axis] - 1));
    this.setView({ cross: inside });
  }

  setSlice(plane, index) {
    if (plane.axis === null) return;
    const before = this.view.cross[plane.axis];
    const cross = [...this.view.cross];
    cross[plane.axis] = clamp(index, 0, this.head.shape[plane.axis] - 1);
    if (cross[plane.axis] === before) return;
    this.scrolled = plane.name;
    this.directions[plane.name] = Math.sign(cross[plane.axis] - before);
    this.since = performance.now();
    this.setView({ cross });
    clearTimeout(this.rest);
    this.rest = setTimeout(() => {
      const shown = this.viewports.find((v) => v.plane.name === plane.name);
      this.live.textContent = `${plane.name} slice ${cross[plane.axis] + 1} of ${this.head.shape[plane.axis]}`;
      this.tell("slice", shown, [this.view.cross]);
    }, 400);
  }

  setMain(name) {
    this.view.single = this.main === name ? !this.view.single && this.head.planes.length > 1 : false;
    this.main = name;
    this.build();
    updateControls(this);
    this.redraw();
  }

  setTool(tool) {
    this.tool = tool;
    this.measuring = null;
    if (this.box) {
      this.box.dataset.tool = tool;
      updateControls(this);
      this.redraw();
    }
  }

  hide(name, hidden) {
    const names = new Set(this.view.hidden);
    if (hidden) names.add(name);
    else names.delete(name);
    this.setView({ hidden: names });
  }

  reset() {
    this.view.zoom = {};
    this.view.invert = false;
    const { hidden, opacity, outline } = this.view;
    this.adopt(this.head);
    this.setView({ hidden, opacity, outline });
  }

  moveMeasure(index) {
    if (!this.measuring) return;
    this.measuring.points[this.measuring.points.length - 1] = index;
    this.redraw();
  }

  endMeasure() {
    const made = this.measuring;
    this.measuring = null;
    made.points = made.points.filter((q, i) => !i || lengthOf(this.head, q, made.points[i - 1]) > 1e-6);
    made.done = true;
    if (made.points.length >= (made.kind === "length" ? 2 : 3)) {
      this.measures = [...this.measures, made];
      this.tellMeasures();
    }
    this.redraw();
  }

  // ---- the page

  mount(parent) {
    if (this.parent === parent) return;
    this.parent = parent;
    this.box = make("div", "planes", { "data-tool": this.tool });
    this.stage = make("div", "stage");
    this.live = make("div", "unseen", { "aria-live": "polite" });
    const middle = put(make("div", "middle"), this.stage, buildPanel(this));
    put(this.box, buildBar(this), buildHelp(this), middle, buildReadout(this), this.live);
    parent.querySelector(".planes-root").replaceChildren(this.box);
    this.viewports = [];
    this.built = "";
  }

  build() {
    const { planes } = this.head;
    if (!planes.some((p) => p.name === this.main)) this.main = planes[0].name;
    const wanted = `${this.head.versions.image}|${planes.map((p) => p.name).join()}`;
    if (this.built !== wanted) {
      this.built = wanted;
      this.viewports = planes.map((plane) => new Viewport(this, plane));
      this.stage.replaceChildren(...this.viewports.map((v) => v.box));
      this.active = this.viewports[0];
    }
    const single = this.view.single || planes.length === 1;
    this.stage.classList.toggle("single", single);
    this.box.style.setProperty("--stage", `${this.head.height}px`);
    for (const viewport of this.viewports) {
      viewport.plane = planes.find((p) => p.name === viewport.plane.name);
      viewport.box.classList.toggle("main", viewport.plane.name === this.main);
    }
  }

  redraw() {
    if (this.drawing || !this.head || !this.stage) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      for (const viewport of this.viewports) viewport.paint();
      if (this.since && !this.viewports.some((v) => v.box.classList.contains("waiting"))) {
        this.box.dataset.took = String(Math.round(performance.now() - this.since)); // ms from the wheel to the picture
        this.since = 0;
      }
      const main = this.viewports.find((v) => v.plane.name === this.main);
      const over = this.viewports.includes(this.over?.viewport) ? this.over : { viewport: main, at: null };
      this.readOut(over.viewport, over.at);
      this.ask();
    });
  }

  // At a place of the plane, or at the crosshair when the mouse is elsewhere.
  readOut(viewport, at) {
    this.over = at && { viewport, at };
    const { head, view, read } = this;
    const { plane } = viewport;
    const [column, row] = at
      ? [Math.round(at.column), Math.round(at.row)]
      : [view.cross[plane.across], view.cross[plane.down]];
    const index = toIndex(head, plane, view.cross, column, row);
    read.index.textContent = index.join(", ");
    const world = toWorld(head, index) || (head.spacing && index.map((i, axis) => i * head.spacing[axis]));
    if (world) read.mm.textContent = world.map((w) => fixed(w)).join(", ");
    const image = viewport.slab("image");
    const values = image ? Array.from({ length: image.count }, (_, c) => short(valueAt(image, column, row, c))) : ["…"];
    read.value.textContent = values.join(", ") + (head.unit ? ` ${head.unit}` : "");
    const labels = viewport.slab("mask");
    if (labels) {
      const value = valueAt(labels, column, row);
      const names = head.exclusive
        ? [head.classes[value]?.name]
        : head.classes.filter((_, c) => (value >> c) & 1).map((c) => c.name);
      read.label.textContent = names.filter(Boolean).join(", ") || "–";
    }
    const likely = viewport.slab("probability");
    if (likely) read.probability.textContent = (valueAt(likely, column, row) / 255).toFixed(2);
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
