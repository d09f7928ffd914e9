"use strict";
// Everything shown is set as textContent: no text of the data ever becomes markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const HEAT = [0.25, 0.5, 1, 2, 3, 4.5, 6, 8]; // bits at which the shades of surprisal begin

const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const shortsOf = (base64) => {
  const raw = bytesOf(base64);
  return Uint16Array.from({ length: raw.length / 2 }, (_, i) => raw[2 * i] | (raw[2 * i + 1] << 8));
};

function opened(model) { // the arrays of a model's reading; 65535 stands for "nothing"
  if (!model.text) {
    model.text = bytesOf(model.data);
    model.bits = shortsOf(model.bits);
    model.levels = model.levels.map((one) => ({ p: shortsOf(one.p), boundary: bytesOf(one.boundary) }));
  }
  return model;
}

function element(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0"));

// The character at byte i as [bytes, what to show]: an escape where it is cut in two, invalid, or does not print.
function character(text, i, boundary) {
  const first = text[i];
  const size = first < 0x80 ? 1 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc0 ? 2 : 1;
  let cut = i + size > text.length;
  for (let k = 1; k < size; k++) cut ||= Boolean(boundary && boundary[i + k]);
  if (!cut) {
    try {
      const found = strict.decode(text.subarray(i, i + size));
      if (found === "\n") return [1, "↵\n", true];
      if (found === "\t") return [1, "→\t", true];
      if (found === " " || !/[\p{C}\p{Z}]/u.test(found)) return [size, found, false];
      return [size, "\\x" + hex(text.subarray(i, i + size)).join("\\x"), true];
    } catch { /* not UTF-8: byte by byte */ }
  }
  return [1, "\\x" + hex([first])[0], true];
}

function shown(text, start, end) { // a stretch of bytes for the line of facts
  let found = "";
  for (let i = start; i < end;) {
    const [size, what] = character(text.subarray(0, end), i);
    found += what === "↵\n" ? "↵" : what === "→\t" ? "→" : what;
    i += size;
  }
  return found;
}

function shade(model, i, view, level) {
  if (view === "bits") return model.bits[i] === 65535 ? 0 : HEAT.filter((edge) => model.bits[i] / 1000 >= edge).length;
  const p = model.levels[level]?.p[i] ?? 65535;
  return p === 65535 ? 0 : Math.min(8, Math.floor((p / 10000) * 9));
}

let boxes = []; // a box of text per model; its .spans has the element of each byte

function draw() {
  const text = data.texts[$("text").value], view = $("view").value, level = Number($("level").value);
  const panels = text.models.map((model, column) => {
    opened(model);
    const boundary = model.levels[Math.min(level, model.levels.length - 1)]?.boundary;
    const panel = element("section"), box = element("pre", `text ${model.levels.length ? view : "bits"}`);
    panel.append(element("h3", "", data.names[column]), box);
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `text as ${data.names[column]} reads it`);
    box.dataset.model = column;
    box.spans = [];
    let chunk = element("span", "chunk"), odd = false;
    for (let i = 0; i < model.text.length;) {
      if (i && boundary?.[i]) {
        box.append(chunk);
        odd = !odd;
        chunk = element("span", odd ? "chunk odd" : "chunk");
      }
      const [size, what, mark] = character(model.text, i, boundary);
      const one = element("span", mark ? "mark" : "", what);
      const heat = view === "chunks" && model.levels.length ? 0 : shade(model, i, model.levels.length ? view : "bits", level);
      if (heat) one.classList.add(`h${heat}`);
      if (level > 0 && data.chunking[column] === "router" && model.levels[0]?.boundary[i] && !boundary?.[i]) one.classList.add("tick");
      one.dataset.at = i;
      box.spans.push(...Array(size).fill(one));
      chunk.append(one);
      i += size;
    }
    box.append(chunk);
    return panel;
  });
  $("panels").replaceChildren(...panels);
  boxes = [...document.querySelectorAll("#panels .text")];
  $("legend-tick").hidden = level === 0 || !data.chunking.includes("router");
  for (const name of ["chunks", "bits", "p"]) $(`legend-${name}`).hidden = name !== view;
}

function chunkOf(model, level, at) {
  const { boundary } = model.levels[level];
  let start = at, end = at + 1;
  while (start > 0 && !boundary[start]) start--;
  while (end < model.text.length && !boundary[end]) end++;
  return [start, end];
}

const share = (value) => (value === 65535 || value === undefined ? "–" : (value / 10000).toFixed(3));
const bits = (value) => (value === 65535 || value === undefined ? "–" : (value / 1000).toFixed(2));

function row(tag, cells) {
  const made = element("tr");
  made.append(...cells.map((cell) => element(tag, "", String(cell))));
  return made;
}

function tell(box, at) { // what there is to know of a byte, and where it is, in every model's panel
  const text = data.texts[$("text").value], own = text.models[box.dataset.model];
  for (const old of document.querySelectorAll(".here")) old.classList.remove("here");
  const same = (model) => model.data === own.data;
  const table = element("table"), size = character(own.text, at)[0];
  const columns = ["byte", P, "boundary", "surprisal", "offset", "chunk"];
  if (data.depth > 1) columns.unshift(DEPTH);
  if (data.names.length > 1) columns.unshift("model");
  table.append(row("th", columns));
  text.models.forEach((model, column) => {
    if (!same(model)) return;
    boxes[column].spans[at].classList.add("here");
    for (let i = at; i < at + size; i++) {
      for (const level of model.levels.length ? model.levels.keys() : [null]) {
        const facts = {
          model: data.names[column], offset: i, surprisal: `${bits(model.bits[i])} bits`,
          byte: `${hex([model.text[i]])[0]} ${shown(model.text, at, at + size)}`,
          [DEPTH]: "–", [P]: "–", boundary: "–", chunk: "flat: no chunks",
        };
        if (level !== null) {
          const [start, end] = chunkOf(model, level, i), cut = Math.min(end, start + 60);
          facts[DEPTH] = level;
          facts[P] = share(model.levels[level].p[i]);
          facts.boundary = model.levels[level].boundary[i] ? "● yes" : "no";
          facts.chunk = `${shown(model.text, start, cut)}${end > cut ? "…" : ""} (${end - start} bytes)`;
        }
        table.append(row("td", columns.map((name) => facts[name])));
      }
    }
  });
  $("info").replaceChildren(table);
}

function over(event) {
  const one = event.target.closest?.("[data-at]");
  if (one) tell(one.closest(".text"), Number(one.dataset.at));
}

$("panels").addEventListener("pointerover", over);
$("panels").addEventListener("click", over);
$("panels").addEventListener("keydown", (event) => { // arrows walk through the bytes
  const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key], box = event.target.closest(".text");
  if (!way || !box) return;
  const here = box.querySelector(".here"), last = box.spans.length - 1;
  let at = here ? Number(here.dataset.at) : 0;
  if (here) at = way > 0 ? box.spans.lastIndexOf(here) + 1 : at - 1;
  const next = box.spans[Math.max(0, Math.min(last, at))];
  event.preventDefault();
  tell(box, Number(next.dataset.at));
  next.scrollIntoView({ block: "nearest" });
});

// What the page calls a boundary's probability and its level: b and a layer, where chunking is soft.
const routers = data.chunking.includes("router"), soft = data.chunking.includes("soft");
const P = !soft ? "p" : routers ? "p or b" : "b", DEPTH = soft && !routers ? "layer" : "level";
$("depth").textContent = DEPTH;
if (soft) $("view-p").textContent = routers ? "boundary probability, or b" : "b";

data.texts.forEach((text, index) => $("text").append(new Option(text.name, index)));
for (let level = 0; level < data.depth; level++) $("level").append(new Option(DEPTH === "layer" ? level : level ? `${level} (inner)` : "0 (outermost)", level));
$("text").parentElement.hidden = data.texts.length < 2;
$("level").parentElement.hidden = data.depth < 2;
if (soft && !routers) $("view").value = "p"; // where b passes the threshold is only one way to look at it
if (!data.depth) {
  $("view").value = "bits";
  for (const option of $("view").options) option.disabled = option.value !== "bits";
}
for (const id of ["text", "view", "level"]) $(id).addEventListener("change", draw);
draw();
