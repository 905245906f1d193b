// Small helpers for the page. Text is set as text, never as markup.

function make(tag, className = "", options = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  // Else Chromium asks its maker what the field may be.
  if (tag === "input" || tag === "select") element.setAttribute("autocomplete", "off");
  const { text, ...attributes } = options;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  return element;
}

function put(parent, ...children) {
  for (const child of children) if (child) parent.appendChild(child);
  return parent;
}

const ICONS = {
  window: "M12 3a9 9 0 1 0 0 18a9 9 0 0 0 0-18zM12 3v18M12 7h5.5M12 12h9M12 17h5.5",
  pan: "M12 3v18M3 12h18M12 3l-2.5 2.5M12 3l2.5 2.5M12 21l-2.5-2.5M12 21l2.5-2.5M3 12l2.5-2.5M3 12l2.5 2.5M21 12l-2.5-2.5M21 12l-2.5 2.5",
  length: "M4 17L17 4l3 3L7 20zM8 13l2 2M11 10l2 2M14 7l2 2",
  area: "M5 8l8-4l7 6l-4 9H7z",
  reset: "M4 12a8 8 0 1 0 3-6.2M4 4v5h5",
  invert: "M4 4h16v16H4zM4 20L20 4M14 17h4M8 6v4M6 8h4",
  prompt: "M12 3v6M12 15v6M3 12h6M15 12h6",
  help: "M9 9a3 3 0 1 1 4 2.8c-.7.4-1 .9-1 1.7v.5M12 17.5v.5",
  layout: "M3 4h18v16H3zM15 4v16M15 12h6",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.appendChild(path);
  return svg;
}

function fixed(value, digits = 1) {
  return (Math.abs(value) < 0.5 * 10 ** -digits ? 0 : value).toFixed(digits);
}

// Enough digits to tell values apart, not more.
function short(value) {
  if (value === undefined || value === null) return "–";
  if (Number.isNaN(value)) return "not a number";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return String(value);
  const size = Math.abs(value);
  return size >= 1e6 || (size > 0 && size < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function grouped(count) {
  return String(count).replace(/\B(?=(\d{3})+(?!\d))/g, " "); // narrow no-break space
}

function sized(value) {
  return value === 0 ? "0" : value >= 100 ? grouped(Math.round(value)) : value >= 1 ? value.toFixed(1) : value.toPrecision(2);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
