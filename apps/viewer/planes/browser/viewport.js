// One plane on the screen: canvas, letters, slice slider, and what is drawn over the image.

const PLANE_COLOURS = { axial: "#ff6b5e", coronal: "#5ad47b", sagittal: "#ffd24a" };

function planeColour(plane) {
  return PLANE_COLOURS[plane.name] || "#6cb8ff";
}

function sizeText(head, kind, points, plane) {
  const unit = head.spacing ? "mm" : "px";
  if (kind === "length") return `${fixed(lengthOf(head, points[0], points[1]))} ${unit}`;
  return points.length < 3 ? "" : `${sized(areaOf(head, plane, points))} ${unit}²`;
}

class Viewport {
  constructor(ui, plane) {
    this.ui = ui;
    this.plane = plane;
    const title = plane.name[0].toUpperCase() + plane.name.slice(1);
    this.box = make("div", "viewport", { "data-plane": plane.name });
    this.box.style.setProperty("--plane", planeColour(plane));
    this.canvas = make("canvas", "screen", { tabindex: "0", role: "img", "aria-roledescription": "image plane" });
    this.title = make("span", "title", { text: title });
    this.count = make("span", "count");
    this.corner = make("div", "corner top-left");
    put(this.corner, this.title, this.count);
    this.windowText = make("div", "corner top-right");
    this.place = make("div", "corner bottom-left");
    this.letters = ["left", "right", "top", "bottom"].map((at) => make("span", `letter ${at}`));
    this.slider = make("input", "slices", { type: "range", min: "0", step: "1", "aria-label": `${title} slice` });
    put(this.box, this.canvas, this.corner, this.windowText, this.place, ...this.letters);
    if (plane.axis !== null) put(this.box, this.slider);
    this.slider.addEventListener("input", () => ui.setSlice(this.plane, Number(this.slider.value)));
    this.painted = {};
    new ResizeObserver(() => ui.redraw()).observe(this.box);
    listen(ui, this);
  }

  get index() {
    return this.plane.axis === null ? 0 : this.ui.view.cross[this.plane.axis];
  }

  get depth() {
    return this.plane.axis === null ? 1 : this.ui.head.shape[this.plane.axis];
  }

  get place_() {
    return placing(this.ui.head, this.plane, this.ui.view, this.canvas.clientWidth, this.canvas.clientHeight);
  }

  slab(layer) {
    return this.ui.kept.get(this.ui.keyOf(layer, this.plane, this.index));
  }

  // Makes a canvas or a path once for as long as what it is made of stays the same.
  once(name, key, work) {
    if (this.painted[name]?.key !== key) this.painted[name] = { key, made: work(this.painted[name]?.made) };
    return this.painted[name].made;
  }

  paint() {
    const { ui, plane } = this;
    const { head, view } = ui;
    const [width, height, dense] = [this.canvas.clientWidth, this.canvas.clientHeight, window.devicePixelRatio || 1];
    if (!width || !height) return;
    if (this.canvas.width !== Math.round(width * dense) || this.canvas.height !== Math.round(height * dense)) {
      this.canvas.width = Math.round(width * dense);
      this.canvas.height = Math.round(height * dense);
    }
    const p = this.place_;
    const context = this.canvas.getContext("2d");
    const image = this.slab("image");
    if (image) {
      this.shown = this.index;
      const key = `${ui.keyOf("image", plane, this.index)}|${view.window}|${view.level}|${view.invert}`;
      this.once("image", key, (old) => paintImage(image, view.window, view.level, view.invert, old));
    }
    this.box.classList.toggle("waiting", !image);
    this.box.dataset.shown = this.shown ?? "";
    context.setTransform(dense, 0, 0, dense, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    if (this.painted.image) {
      const corner = toScreen(p, -0.5, -0.5);
      const [stepX, stepY] = [p.turnX * p.scale * p.wide, p.turnY * p.scale * p.high];
      context.save();
      context.setTransform(dense * stepX, 0, 0, dense * stepY, dense * corner.x, dense * corner.y);
      context.imageSmoothingEnabled = view.smooth && p.scale * Math.min(p.wide, p.high) < 12;
      context.imageSmoothingQuality = "high";
      context.drawImage(this.painted.image.made, 0, 0, p.columns, p.rows);
      if (image) this.paintOverlay(context, p, dense);
      context.restore();
    }
    context.setTransform(dense, 0, 0, dense, 0, 0);
    this.paintCross(context, p, width, height);
    this.paintMarks(context, p);
    this.paintMeasures(context, p);
    this.paintBar(context, p, width, height);
    this.paintText(p);
  }

  paintOverlay(context, p, dense) {
    const { ui, plane } = this;
    const { head, view } = ui;
    context.imageSmoothingEnabled = false;
    const hidden = [...view.hidden].sort().join("|");
    const likely = view.heat && this.slab("probability");
    if (likely) {
      const heat = this.once("heat", ui.keyOf("probability", plane, this.index), () => paintHeat(likely));
      context.globalAlpha = view.opacity;
      context.drawImage(heat, 0, 0, p.columns, p.rows);
      context.globalAlpha = 1;
    }
    const labels = view.labels && this.slab("mask");
    if (!labels) return;
    const key = `${ui.keyOf("mask", plane, this.index)}|${hidden}`;
    if (!view.outline && !likely) {
      const area = this.once("labels", key, () => paintLabels(head, labels, view.hidden));
      context.globalAlpha = view.opacity;
      context.drawImage(area, 0, 0, p.columns, p.rows);
      context.globalAlpha = 1;
    }
    const lines = this.once("lines", key, () => outlines(head, labels, view.hidden));
    // The path is in elements, its line in screen pixels.
    const now = context.getTransform();
    const grow = new DOMMatrix([now.a * labels.step, 0, 0, now.d * labels.step, now.e, now.f]);
    context.setTransform(dense, 0, 0, dense, 0, 0);
    context.lineWidth = view.outline || likely ? 1.8 : 1;
    context.globalAlpha = view.outline || likely ? 1 : Math.min(1, view.opacity * 1.6);
    const toPixels = new DOMMatrix([grow.a / dense, 0, 0, grow.d / dense, grow.e / dense, grow.f / dense]);
    for (const { path, colour } of lines) {
      const there = new Path2D();
      there.addPath(path, toPixels);
      context.strokeStyle = colour;
      context.stroke(there);
    }
    context.globalAlpha = 1;
  }

  paintCross(context, p, width, height) {
    const { head, view } = this.ui;
    // In a picture it only serves to set points by keys.
    if (!view.crosshair || (this.plane.axis === null && this.ui.tool !== "point")) return;
    const at = toScreen(p, view.cross[this.plane.across], view.cross[this.plane.down]);
    const lineOf = (axis) => head.planes.find((one) => one.axis === axis);
    context.lineWidth = 1;
    context.globalAlpha = 0.85;
    const gap = 9; // what is looked at stays free
    const draw = (axis, parts) => {
      const other = lineOf(axis);
      context.strokeStyle = other ? planeColour(other) : "#9aa";
      context.beginPath();
      for (const [x1, y1, x2, y2] of parts) {
        context.moveTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
        context.lineTo(Math.round(x2) + 0.5, Math.round(y2) + 0.5);
      }
      context.stroke();
    };
    draw(this.plane.across, [[at.x, 0, at.x, at.y - gap], [at.x, at.y + gap, at.x, height]]);
    draw(this.plane.down, [[0, at.y, at.x - gap, at.y], [at.x + gap, at.y, width, at.y]]);
    context.globalAlpha = 1;
  }

  here(points) {
    return this.plane.axis === null || points.every((q) => Math.round(q[this.plane.axis]) === this.index);
  }

  onScreen(p, index) {
    return toScreen(p, index[this.plane.across], index[this.plane.down]);
  }

  trace(context, p, points, closed) {
    context.beginPath();
    points.forEach((q, i) => {
      const at = this.onScreen(p, q);
      if (i) context.lineTo(at.x, at.y);
      else context.moveTo(at.x, at.y);
    });
    if (closed) context.closePath();
  }

  paintMarks(context, p) {
    const { ui } = this;
    const marks = [...ui.head.marks, ...ui.drafts.filter((d) => d.axis === this.plane.axis)];
    for (const mark of marks) {
      if (!mark.points.length || !this.here(mark.points)) continue;
      const colour = mark.colour || (mark.positive === false ? "#ff5252" : "#3ddc84");
      context.strokeStyle = colour;
      context.fillStyle = colour;
      context.lineWidth = 2;
      if (mark.kind === "point") {
        const at = this.onScreen(p, mark.points[0]);
        context.beginPath();
        context.arc(at.x, at.y, 7, 0, 2 * Math.PI);
        context.fill();
        context.strokeStyle = "#fff";
        context.beginPath();
        context.arc(at.x, at.y, 7, 0, 2 * Math.PI);
        context.moveTo(at.x - 3.5, at.y);
        context.lineTo(at.x + 3.5, at.y);
        if (mark.positive !== false) {
          context.moveTo(at.x, at.y - 3.5);
          context.lineTo(at.x, at.y + 3.5);
        }
        context.stroke();
      } else if (mark.kind === "box") {
        const [a, b] = mark.points.map((q) => this.onScreen(p, q));
        context.strokeRect(Math.min(a.x, b.x), Math.min(a.y, b.y), Math.abs(a.x - b.x), Math.abs(a.y - b.y));
      } else if (mark.kind === "brush") {
        context.globalAlpha = 0.55;
        context.lineWidth = Math.max(2, 2 * mark.radius * p.scale * p.wide);
        context.lineCap = context.lineJoin = "round";
        if (mark.points.length === 1) mark.points.push([...mark.points[0]]);
        this.trace(context, p, mark.points, false);
        context.stroke();
        context.globalAlpha = 1;
        context.lineCap = context.lineJoin = "miter";
        context.lineCap = "butt";
      } else {
        this.trace(context, p, mark.points, mark.closed);
        context.stroke();
        for (const q of mark.points) {
          const at = this.onScreen(p, q);
          context.fillRect(at.x - 2.5, at.y - 2.5, 5, 5);
        }
      }
    }
    const brush = ui.brushAt;
    if (brush?.viewport === this && ui.tool === "brush") {
      context.strokeStyle = "#fff";
      context.lineWidth = 1;
      context.beginPath();
      const r = ui.radius * p.scale;
      context.ellipse(brush.x, brush.y, r * p.wide, r * p.wide, 0, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  paintMeasures(context, p) {
    const { ui } = this;
    const all = [...ui.measures, ...(ui.measuring ? [ui.measuring] : [])];
    context.font = "600 12px system-ui, sans-serif";
    for (const m of all) {
      if (m.axis !== this.plane.axis || !m.points.length || !this.here(m.points)) continue;
      for (const [colour, width] of [["rgba(0,0,0,.75)", 4], ["#4fd1ff", 2]]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        this.trace(context, p, m.points, m.kind === "area" && m.done);
        context.stroke();
      }
      context.fillStyle = "#4fd1ff";
      for (const q of m.points) {
        const at = this.onScreen(p, q);
        context.beginPath();
        context.arc(at.x, at.y, 3.5, 0, 2 * Math.PI);
        context.fill();
      }
      const text = m.points.length > 1 ? sizeText(ui.head, m.kind, m.points, this.plane) : "";
      if (!text) continue;
      const at = this.onScreen(p, m.points[m.points.length - 1]);
      const wide = context.measureText(text).width;
      context.fillStyle = "rgba(0,0,0,.72)";
      context.fillRect(at.x + 9, at.y - 10, wide + 10, 20);
      context.fillStyle = "#bfefff";
      context.fillText(text, at.x + 14, at.y + 4);
    }
  }

  paintBar(context, p, width, height) {
    const { head } = this.ui;
    if (!head.spacing) return;
    const most = Math.min(width * 0.3, 160) / p.scale;
    const power = 10 ** Math.floor(Math.log10(most));
    const long = [5, 2, 1].find((k) => k * power <= most) * power;
    const w = long * p.scale;
    const [x, y] = [width - w - 12, height - (this.plane.axis === null ? 12 : 30)];
    context.strokeStyle = "rgba(255,255,255,.85)";
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x, y - 4);
    context.lineTo(x, y);
    context.lineTo(x + w, y);
    context.lineTo(x + w, y - 4);
    context.stroke();
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = "rgba(255,255,255,.85)";
    context.textAlign = "center";
    context.fillText(`${long} mm`, x + w / 2, y - 6);
    context.textAlign = "left";
  }

  paintText(p) {
    const { ui, plane } = this;
    const { head, view } = ui;
    this.letters.forEach((letter, i) => {
      letter.textContent = p.letters[i];
      letter.hidden = !p.letters[i];
    });
    this.count.textContent = plane.axis === null ? "" : `${this.index + 1} / ${this.depth}`;
    this.windowText.textContent = `W ${short(Math.round(view.window * 100) / 100)}  L ${short(Math.round(view.level * 100) / 100)}`;
    const zoom = Math.round((view.zoom[plane.name]?.scale || 1) * 100);
    if (zoom !== 100) this.windowText.textContent += `  ${zoom} %`;
    const world = plane.axis === null ? null : toWorld(head, view.cross);
    const through = head.planes.length && world ? { sagittal: 0, coronal: 1, axial: 2 }[plane.name] : undefined;
    this.place.textContent = through === undefined ? "" : `${fixed(world[through])} mm`;
    this.slider.max = String(this.depth - 1);
    if (Number(this.slider.value) !== this.index) this.slider.value = String(this.index);
    const said = plane.axis === null ? "" : `, slice ${this.index + 1} of ${this.depth}`;
    const letters = p.letters[0] ? `; ${p.letters[0]} at the left edge, ${p.letters[2]} at the top` : "";
    const labels = head.legend.length && view.labels ? `; labels: ${head.legend.map((r) => r.name).join(", ")}` : "";
    const text = `${head.name || "Image"}, ${plane.name}${said}${letters}${labels}`;
    if (this.canvas.getAttribute("aria-label") !== text) this.canvas.setAttribute("aria-label", text);
  }
}
