"use strict";
// A text drawn: above each character its surprisal, around it its chunk, below it p of a boundary and the outer levels.
// Everything shown is set as text, and looks are classes: no text ever becomes markup or style.

const MOST_DRAWN = 20000; // characters; what lies behind is there, but plain
const HEAT = [0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6.5, 8, 10]; // bits at which the bars of surprisal grow

const HANGS = new Set(["space", "tab"]); // they hang at a line's end, unless a mark follows: then they bear its mark

const $ = (id) => document.getElementById(id);

function element(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

const heatOf = (value) => (value === NOTHING ? 0 : HEAT.filter((edge) => value / 1000 >= edge).length);
const barOf = (value) => (value === NOTHING || value === undefined ? 0 : Math.ceil((value / 10000) * 10));

class Picture {
  // `box` takes the characters; `point` is called with the byte that somebody points at.
  constructor(box, point) {
    this.box = box;
    this.spans = [];
    this.looks = [];
    this.chars = [];
    this.reading = null;
    this.marked = null;
    this.end = element("span", "end");
    this.rest = element("span", "rest", "");
    box.append(this.rest, this.end);
    const over = (event) => {
      const at = this.byteAt(event);
      if (at !== null) point(at, event.type);
    };
    for (const kind of ["pointermove", "click"]) (box.closest(".box") ?? box).addEventListener(kind, over);
  }

  // The byte under the pointer, also where an editor lies above the picture.
  byteAt(event) {
    const one = document.elementsFromPoint(event.clientX, event.clientY).find((each) => each.parentNode === this.box);
    if (!one) return null;
    if (one === this.end) return this.reading ? this.reading.data.length : null;
    const at = this.spans.indexOf(one);
    return at < 0 || at >= this.chars.length ? null : this.chars[at].at;
  }

  // `was`: what `carriedOver` says of the chunks before an edit; `other`: the boundaries of another model.
  draw(reading, { level = 0, was = null, other = null } = {}) {
    this.reading = reading;
    this.chars = characters(reading.data);
    const drawn = Math.min(this.chars.length, MOST_DRAWN), fresh = document.createDocumentFragment();
    const boundary = reading.levels[level]?.boundary, outer = reading.levels.slice(level + 1);
    let odd = 0, tokens = 0;
    const lanes = outer.map(() => 0);
    for (let i = 0; i < drawn; i++) {
      const one = this.chars[i], at = one.at;
      let look = `c ${one.kind}`;
      if (one.kind === "newline" && i && HANGS.has(this.chars[i - 1].kind)) look += " bare";
      if (HANGS.has(one.kind) && this.chars[i + 1]?.kind === "newline") look += " eol";
      if (boundary) {
        let inside = 0;
        for (let k = 1; k < one.size; k++) inside += boundary[at + k];
        if (boundary[at]) odd ^= 1;
        look += odd ? " odd" : " even";
        if (boundary[at]) look += " begin";
        if (inside) look += " cut";
        look += ` p${barOf(reading.levels[level].p[at])}`;
        if (was && was[at] !== 2 && was[at] !== boundary[at]) look += was[at] ? " gone" : " come";
        if (other && other[at] !== boundary[at]) look += " differs";
        if (inside % 2) odd ^= 1;
      } else look += " flat";
      outer.forEach((each, depth) => {
        if (each.boundary[at]) lanes[depth] ^= 1;
        look += ` o${depth}${lanes[depth] ? "a" : "b"}`;
        if (each.boundary[at]) look += ` o${depth}s`;
      });
      if (reading.reference) {
        if (reading.reference[at]) tokens ^= 1;
        look += tokens ? " ta" : " tb";
        if (reading.reference[at]) look += " ts";
      }
      look += ` s${heatOf(this.surprisal(reading, one))}`;
      const key = `${look}|${one.text}`;
      if (this.looks[i] === key) continue;
      this.looks[i] = key;
      let span = this.spans[i];
      if (!span) {
        span = this.spans[i] = element("span");
        fresh.append(span);
      }
      span.className = look;
      span.textContent = one.text;
      if (one.label) span.dataset.label = one.label;
      else if (span.dataset.label) delete span.dataset.label;
    }
    for (const span of this.spans.splice(drawn)) span.remove();
    this.looks.length = drawn;
    if (fresh.childNodes.length) this.box.insertBefore(fresh, this.rest);
    const last = this.chars[drawn - 1];
    // what is not drawn is there all the same; and a last line that is empty takes its room
    this.rest.textContent = drawn < this.chars.length
      ? new TextDecoder().decode(reading.data.subarray(last.at + last.size)) : last?.kind === "newline" ? "\u200b" : "";
    this.box.dataset.lanes = Math.min(3, outer.length);
    this.box.classList.toggle("tokens", Boolean(reading.reference));
    this.marked = null;
  }

  // The bits of a character: of all its bytes.
  surprisal(reading, one) {
    let sum = 0;
    for (let k = 0; k < one.size; k++) {
      if (reading.bits[one.at + k] === NOTHING) return NOTHING;
      sum += reading.bits[one.at + k];
    }
    return sum;
  }

  indexOf(at) { // of the character with that byte
    let low = 0, high = this.chars.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.chars[middle].at + this.chars[middle].size <= at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  mark(at) {
    this.marked?.classList.remove("here");
    const index = this.indexOf(at);
    this.marked = index < this.spans.length ? this.spans[index] : this.end;
    this.marked.classList.add("here");
    return this.marked;
  }
}

// ---- what there is to know of a byte

function bar(share, kind) {
  const made = element("span", `bar ${kind ?? ""}`), fill = element("span");
  fill.style.width = `${Math.round(100 * Math.min(1, share))}%`;
  made.append(fill);
  return made;
}

function fact(name, ...what) {
  const made = element("div", "fact");
  made.append(element("span", "soft", name), ...what);
  return made;
}

// Fill `target` with what the models made of the byte at `at`. `choose` is called with a candidate's bytes, if given.
function tell(target, models, at, choose) {
  const first = models[0].reading, data = first.data;
  const index = models[0].picture.indexOf(at), one = models[0].picture.chars[index];
  const parts = [];
  const title = element("p", "byte");
  if (one) {
    const what = one.kind === "" ? one.text : shown(data, one.at, one.at + one.size);
    title.append(element("b", "glyph", what), ` byte ${(at + 1).toLocaleString("en")} of ${data.length.toLocaleString("en")}`);
    const codes = Array.from(data.subarray(one.at, one.at + one.size), hex).join(" ");
    title.append(element("span", "soft", ` · ${one.name ? `${one.name} · ` : ""}${codes}`));
  } else title.append(element("b", "glyph", "▏"), " what comes next");
  parts.push(title);
  for (const { name, reading, unit } of models) {
    if (models.length > 1) parts.push(element("h4", "", name));
    if (at > reading.data.length || (models.length > 1 && reading.data.length !== data.length)) {
      parts.push(element("p", "soft", "It keeps this text otherwise."));
      continue;
    }
    if (one) {
      for (let k = one.at; k < one.at + one.size; k++) {
        const label = one.size > 1 ? `surprisal, byte ${hex(data[k])}` : "surprisal";
        parts.push(fact(label, bar(reading.bits[k] / 10000, "heat"), element("b", "", `${bitsOf(reading.bits[k])} bits`)));
      }
      reading.levels.forEach((level, depth) => {
        const many = reading.levels.length > 1;
        for (let k = one.at; k < one.at + one.size; k++) {
          if (k > one.at && !level.boundary[k]) continue;
          const where = one.size > 1 ? `, byte ${hex(data[k])}` : "";
          const said = `${shareOf(level.p[k])}${level.boundary[k] ? " ●" : ""}`;
          parts.push(fact(`${unit}${many ? ` of level ${depth}` : ""}${where}`, bar(level.p[k] === NOTHING ? 0 : level.p[k] / 10000), element("b", "", said)));
        }
        const [start, end] = chunkAt(level.boundary, one.at), cut = Math.min(end, start + 48);
        const text = `${shown(data, start, cut)}${end > cut ? "…" : ""}`;
        parts.push(fact(many ? `chunk of level ${depth}` : "chunk", element("code", "", text), element("b", "", `${end - start} bytes`)));
      });
      if (!reading.levels.length) parts.push(fact("chunk", element("span", "", "a flat model has none")));
    }
    parts.push(...candidateList(reading, at, choose));
  }
  target.replaceChildren(...parts);
}

function candidateList(reading, at, choose) {
  const found = candidatesAt(reading, at);
  if (!found.length) return [];
  const list = element("ol", "candidates");
  const actual = reading.data.subarray(at);
  for (const { piece, label, share } of found) {
    const row = element("li"), here = piece && piece.length && piece.every((byte, k) => byte === actual[k]);
    const button = element(choose && piece ? "button" : "span", here ? "candidate actual" : "candidate");
    if (button.tagName === "BUTTON") {
      button.type = "button";
      button.setAttribute("aria-label", `${label}, ${(100 * share).toFixed(1)} percent: put it there`);
      button.addEventListener("click", () => choose(piece, at));
    }
    button.append(element("code", "", label), bar(share, "share"), element("span", "number", `${(100 * share).toFixed(1)} %`));
    row.append(button);
    list.append(row);
  }
  return [element("p", "soft small", at < reading.data.length ? "What it expected here" : "What it expects next"), list];
}
