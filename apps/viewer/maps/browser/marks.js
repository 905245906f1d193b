// What is drawn over the map: prompts, the scale bar, north.

function paintMarks(ui, context) {
  const at = ([row, column]) => toScreen(ui, column + 0.5, row + 0.5);
  for (const mark of [...ui.head.marks, ...ui.drafts]) {
    if (!mark.points.length) continue;
    const colour = mark.colour || (mark.positive === false ? "#ff5252" : "#3ddc84");
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = 2;
    context.beginPath();
    if (mark.kind === "point") {
      const { x, y } = at(mark.points[0]);
      context.arc(x, y, 7, 0, 2 * Math.PI);
      context.fill();
      context.strokeStyle = "#fff";
      context.moveTo(x - 3.5, y);
      context.lineTo(x + 3.5, y);
      if (mark.positive !== false) {
        context.moveTo(x, y - 3.5);
        context.lineTo(x, y + 3.5);
      }
    } else if (mark.kind === "box") {
      const [a, b] = mark.points.map(at);
      context.rect(Math.min(a.x, b.x), Math.min(a.y, b.y), Math.abs(a.x - b.x), Math.abs(a.y - b.y));
    } else {
      mark.points.map(at).forEach(({ x, y }, i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      if (mark.closed) context.closePath();
    }
    context.stroke();
  }
}

function haloed(context, draw) {
  context.lineJoin = "round";
  for (const [colour, width] of [["rgba(0,0,0,.7)", 4.5], ["#fff", 1.75]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    draw();
  }
}

function paintScaleBar(ui, context) {
  const metres = between(ui.head, "across", ui.view.x, ui.view.y);
  if (!metres) return;
  const long = roundLength((Math.min(ui.wide * 0.25, 170) / ui.view.scale) * metres);
  const w = (long / metres) * ui.view.scale;
  const [x, y] = [16, ui.high - 16];
  haloed(context, () => {
    context.beginPath();
    context.moveTo(x, y - 6);
    context.lineTo(x, y);
    context.lineTo(x + w, y);
    context.lineTo(x + w, y - 6);
    context.stroke();
  });
  context.font = "600 12px system-ui, sans-serif";
  context.textAlign = "center";
  context.lineWidth = 3.5;
  context.strokeStyle = "rgba(0,0,0,.7)";
  context.strokeText(lengthText(long), x + w / 2, y - 8);
  context.fillStyle = "#fff";
  context.fillText(lengthText(long), x + w / 2, y - 8);
  context.textAlign = "left";
  ui.box.dataset.scale = lengthText(long);
}

// Only where up is not north: everywhere else it is what people expect.
function paintNorth(ui, context) {
  const turn = northOf(ui);
  const shown = turn !== null && (ui.head.place.rotated || Math.abs(turn) > 0.1);
  ui.box.dataset.north = shown ? ((turn * 180) / Math.PI).toFixed(1) : "";
  if (!shown) return;
  context.save();
  context.translate(ui.wide - 34, 36);
  context.rotate(turn);
  context.beginPath();
  context.moveTo(0, -19);
  context.lineTo(8, 12);
  context.lineTo(0, 6);
  context.lineTo(-8, 12);
  context.closePath();
  context.strokeStyle = "rgba(0,0,0,.7)";
  context.lineWidth = 3;
  context.stroke();
  context.fillStyle = "#fff";
  context.fill();
  context.restore();
  context.font = "700 12px system-ui, sans-serif";
  context.textAlign = "center";
  context.fillStyle = "#fff";
  context.strokeStyle = "rgba(0,0,0,.7)";
  context.lineWidth = 3;
  const [x, y] = [ui.wide - 34 + 27 * Math.sin(turn), 36 - 27 * Math.cos(turn) + 4];
  context.strokeText("N", x, y);
  context.fillText("N", x, y);
  context.textAlign = "left";
}
