"use strict";
// What every view's page shares: opening its data, colours, small pieces of page.

const INKS = ["#3b6fd4", "#d9642c", "#2f9e68", "#c2388f", "#8a63d2", "#b58900", "#1899ad",
  "#d33f49", "#6b8e23", "#a0522d", "#5f7fae", "#e07ba8"]; // of heads
const inkOf = (head) => INKS[head % INKS.length];

/** {about, bytes}: the JSON at the block's end, and the bytes before it. */
async function opened() {
  const text = atob(document.getElementById("data").textContent);
  const packed = new Uint8Array(text.length);
  for (let n = 0; n < text.length; n++) packed[n] = text.charCodeAt(n);
  const flow = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(flow).arrayBuffer());
  const end = bytes.length - 4, size = new DataView(bytes.buffer).getUint32(end, true);
  const about = JSON.parse(new TextDecoder().decode(bytes.subarray(end - size, end)));
  if (about.theme) document.documentElement.dataset.theme = about.theme;
  return { about, bytes: bytes.subarray(0, end - size) };
}

/** An element: make("button.on", {title: "x"}, "text", child ...). Texts are only ever texts. */
function make(name, given = {}, ...inside) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && typeof value !== "string") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...inside);
  return made;
}

const fill = (sentence, values) => sentence.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const formats = {};
function shown(lang, x, options = {}) {
  const key = lang + JSON.stringify(options);
  return (formats[key] ??= new Intl.NumberFormat(lang, options)).format(x);
}
const LEAST = 1e-4; // a share below it is said to be less, not 0
const percent = (lang, p) => (p > 0 && p < LEAST ? "<" : "")
  + shown(lang, p > 0 ? Math.max(p, LEAST) : p, { style: "percent", maximumFractionDigits: p < 0.001 ? 2 : 1 });

/** A byte round(255 sqrt(w)) -> w. */
const WEIGHT = Float32Array.from({ length: 256 }, (_, v) => (v / 255) ** 2);

const isDark = () => document.documentElement.dataset.theme === "dark"
  || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
const RAMPS = {
  light: [[251, 250, 247], [251, 227, 181], [245, 163, 92], [217, 72, 95], [123, 42, 120], [36, 26, 58]],
  dark: [[22, 21, 30], [58, 32, 82], [123, 42, 120], [217, 72, 95], [245, 163, 92], [253, 240, 205]],
};
/** [r, g, b] of 0 to 1, paper to strongest. */
function heat(x, dark = isDark()) {
  const ramp = RAMPS[dark ? "dark" : "light"], at = Math.min(0.9999, Math.max(0, x)) * 5;
  const low = Math.floor(at), part = at - low;
  return ramp[low].map((c, n) => Math.round(c * (1 - part) + ramp[low + 1][n] * part));
}
const css = (rgb) => `rgb(${rgb.join(" ")})`;
const inkOn = (rgb) => (rgb[0] * 0.3 + rgb[1] * 0.59 + rgb[2] * 0.11 > 140 ? "#1c1a27" : "#fbfaf7");

/** Paints bytes, one pixel a cell, into a canvas of that size; the page scales it. */
function paintMap(canvas, bytes, rows, cols, from = 0) {
  canvas.width = cols;
  canvas.height = rows;
  const colours = Uint32Array.from({ length: 256 }, (_, v) => {
    const [r, g, b] = heat(v / 255);
    return (255 << 24 | b << 16 | g << 8 | r) >>> 0;
  });
  const pixels = new ImageData(cols, rows), out = new Uint32Array(pixels.data.buffer);
  for (let n = 0; n < rows * cols; n++) out[n] = colours[bytes[from + n]];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

const NAMED = 40; // tokens up to which a map bears their names

/** A head's map as large as fits, its tokens along both sides; point(q, k, weight) on hover. */
function labelled(bytes, arm, from, title, most, point) {
  const { rows, cols, queries, keys } = arm, canvas = make("canvas.mapped", { role: "img", "aria-label": title });
  paintMap(canvas, bytes, rows, cols, from);
  const cell = Math.max(1, Math.min(30, Math.floor(most / Math.max(rows, cols))));
  canvas.style.width = `${cell * cols}px`;
  canvas.style.height = `${cell * rows}px`;
  canvas.onpointermove = (event) => {
    const box = canvas.getBoundingClientRect(), at = (part, count) => Math.min(count - 1, Math.max(0, Math.floor(part * count)));
    const q = at((event.clientY - box.top) / box.height, rows), k = at((event.clientX - box.left) / box.width, cols);
    point(q, k, WEIGHT[bytes[from + q * cols + k]]);
  };
  if (Math.max(rows, cols) > NAMED || rows !== queries.length || cols !== keys.length) return canvas;
  const names = (kind, texts, side) => make(`div.${kind}`, {}, ...texts.map((text) => {
    const name = make("span", { title: text }, text.trim());
    name.style[side] = `${cell}px`;
    return name;
  }));
  return make("div.labelled", {}, make("span"), names("over", keys, "width"), names("beside", queries, "height"), canvas);
}

/** Sizes a canvas to its place on the page, sharp on any screen; its context, in page pixels. */
function fitted(canvas, width, height) {
  const sharp = Math.min(devicePixelRatio || 1, 16000 / Math.max(width, height, 1));
  canvas.width = Math.max(1, Math.round(width * sharp));
  canvas.height = Math.max(1, Math.round(height * sharp));
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const ctx = canvas.getContext("2d");
  ctx.scale(canvas.width / width, canvas.height / height);
  return ctx;
}

/** Hands a canvas to the reader as a file. */
function saved(canvas, name) {
  canvas.toBlob((blob) => {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

/** A labelled choice; options: [[value, text], ...]. */
function choice(label, id, options, value, change) {
  const select = make("select", { id, onchange: () => change(select.value) },
    ...options.map(([v, text]) => make("option", { value: String(v) }, text)));
  select.value = String(value);
  return make("label", {}, `${label} `, select);
}

/** A labelled slider whose value stands beside it. */
function slider(label, id, { min, max, step, value }, said, change) {
  const out = make("output", {}, said(value));
  const input = make("input", { id, type: "range", min: String(min), max: String(max),
    step: String(step), oninput: () => { out.textContent = said(+input.value); change(+input.value); } });
  input.value = String(value);
  return make("label", {}, `${label} `, input, out);
}

/** Rows of texts as a table; numbers right. */
function table(head, rows, numbers = []) {
  const cell = (tag, text, n) => make(numbers.includes(n) ? `${tag}.n` : tag, {}, text);
  return make("table", {}, make("thead", {}, make("tr", {}, ...head.map((t, n) => cell("th", t, n)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((t, n) => cell("td", t, n))))));
}

function begin(start) {
  opened().then(start).catch((error) => {
    document.body.append(make("p.error", { role: "alert" }, String(error)));
    throw error;
  });
}
