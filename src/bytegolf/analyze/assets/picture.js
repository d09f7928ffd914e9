"use strict";
// A text drawn: above each character its surprisal, around it its chunk, below it p of a boundary, the outer levels and
// another tokenizer's tokens. The letters are elements, so that the browser sets them as it sets the editor's; all else is
// painted on a canvas behind them, as large as the window onto the text: thousands of styled elements would be too slow.

const MOST_DRAWN = 20000; // characters; what lies behind is there, but plain
const HEAT = [0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6.5, 8, 10]; // bits at which the bars of surprisal grow
const TALL = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 13, 15]; // to so many pixels
const LANE = 8, FIRST_LANE = 14; // pixels from lane to lane, and from the letters to the first
const COLORS = ["even", "odd", "plain", "low", "high", "maybe", "yes", "ring", "ghost", "ink", "soft", "one", "two", "three", "four", "accent"];
const LANES_COLORS = [["one", "two"], ["accent", "maybe"], ["high", "low"]];

const $ = (id) => document.getElementById(id);

function element(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

const heatOf = (value) => (value === NOTHING ? 0 : HEAT.filter((edge) => value / 1000 >= edge).length);

let palette = null; // the theme's colours, as a canvas wants them

function colors() {
  if (palette) return palette;
  const probe = document.body.appendChild(element("i"));
  palette = {};
  for (const name of COLORS) {
    probe.style.color = `var(--${name})`;
    palette[name] = getComputedStyle(probe).color;
  }
  const parts = (text) => text.match(/[\d.]+/g).map(Number), [low, high] = [parts(palette.low), parts(palette.high)];
  const most = TALL.at(-1); // a bar's colour goes from that of little surprise to that of much
  palette.bars = Array.from({ length: most + 1 }, (_, tall) => `rgb(${low.map((part, at) => Math.round(part + ((high[at] - part) * tall) / most)).join(" ")})`);
  probe.remove();
  return palette;
}

class Picture {
  // `box` scrolls, and holds `text`, which takes the characters; `point` is called with the byte that somebody points at.
  constructor(box, text, point) {
    Object.assign(this, { box, text, reading: null, chars: [], spans: [], marks: {}, lanes: [], rows: [], here: null, options: {} });
    Object.assign(this, { place: new Float32Array(0), measured: 0, due: false });
    this.canvas = element("canvas", "paint");
    this.canvas.setAttribute("aria-hidden", "true");
    this.rest = element("span");
    text.append(this.rest);
    box.prepend(this.canvas);
    box.addEventListener("scroll", () => this.later(), { passive: true });
    new ResizeObserver(() => {
      this.measured = 0;
      this.later();
    }).observe(text);
    for (const kind of ["pointermove", "click"]) {
      box.addEventListener(kind, (event) => {
        const at = this.byteAt(event);
        if (at !== null) point(at, event.type);
      });
    }
  }

  // `was`: what `carriedOver` says of the chunks before an edit; `other`: the boundaries of another model.
  draw(reading, options = {}) {
    Object.assign(this, { reading, options });
    let start = this.write(characters(reading.data));
    this.look();
    const { place } = this; // what stands before the change stands where it stood, but
    while (start > 0 && place[3 * start - 2] === place[3 * start + 1]) start--; // a line may break elsewhere now
    this.measured = Math.max(0, Math.min(this.measured, start - 200)); // and a word may have come up from it
    this.later();
  }

  // Measure and paint with the next frame, once, whatever else changes until then.
  later() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => this.settle());
  }

  settle() {
    if (!this.due) return;
    this.due = false;
    this.measure();
    this.paint();
  }

  // Put the characters in place, and leave those alone that are there already; the first that is new.
  write(chars) {
    const old = this.chars, oldDrawn = this.spans.length, drawn = Math.min(chars.length, MOST_DRAWN);
    const same = (one, two) => one.text === two.text && one.kind === two.kind;
    let start = 0, end = 0;
    while (start < Math.min(oldDrawn, drawn) && same(old[start], chars[start])) start++;
    const most = Math.min(oldDrawn, drawn) - start;
    while (end < most && same(old[oldDrawn - 1 - end], chars[drawn - 1 - end])) end++;
    const fresh = document.createDocumentFragment(), made = [];
    for (let i = start; i < drawn - end; i++) {
      const one = element("span", chars[i].kind === "raw" ? "raw" : "", chars[i].text);
      made.push(one);
      fresh.append(one);
    }
    for (const span of this.spans.splice(start, oldDrawn - end - start, ...made)) span.remove();
    this.text.insertBefore(fresh, this.spans[start + made.length] ?? this.rest);
    const last = chars[drawn - 1];
    // what is not drawn is there all the same; and a last line that is empty takes its room
    const rest = drawn < chars.length
      ? new TextDecoder().decode(this.reading.data.subarray(last.at + last.size)) : last?.kind === "newline" ? "\u200b" : "";
    if (this.rest.textContent !== rest) this.rest.textContent = rest;
    this.chars = chars;
    return start;
  }

  // What is to be painted of each character.
  look() {
    const { reading, chars, options: { level = 0, was = null, other = null } } = this, size = this.spans.length;
    const marks = this.marks = {};
    for (const name of ["begin", "odd", "cut", "gone", "come", "differs", "heat", "p"]) marks[name] = new Uint8Array(size);
    const boundary = reading.levels[level]?.boundary, p = reading.levels[level]?.p;
    this.flat = !boundary;
    this.lanes = reading.levels.slice(level + 1).map((one, depth) => lane(one.boundary, LANES_COLORS[depth % 3]));
    if (reading.reference) this.lanes.push(lane(reading.reference, ["three", "four"], "tokens"));
    let odd = 0;
    for (let i = 0; i < size; i++) {
      const { at, size: bytes } = chars[i];
      let bits = 0, inside = 0;
      for (let k = at; k < at + bytes; k++) {
        bits = reading.bits[k] === NOTHING ? NaN : bits + reading.bits[k];
        if (boundary && k > at) inside += boundary[k];
      }
      marks.heat[i] = TALL[Number.isNaN(bits) ? 0 : heatOf(Math.min(bits, NOTHING - 1))];
      if (boundary) {
        odd ^= boundary[at];
        marks.begin[i] = boundary[at];
        marks.odd[i] = odd;
        marks.cut[i] = inside;
        marks.p[i] = p[at] === NOTHING ? 0 : Math.ceil((p[at] / 10000) * 11);
        if (was && was[at] !== 2 && was[at] !== boundary[at]) marks[was[at] ? "gone" : "come"][i] = 1;
        if (other && other[at] !== boundary[at]) marks.differs[i] = 1;
        odd ^= inside & 1;
      }
      for (const one of this.lanes) {
        one.odd[i] = one.now ^= one.boundary[at];
        one.begin[i] = one.boundary[at];
      }
    }
    this.text.setAttribute("data-lanes", this.lanes.length);
  }

  // Where the characters are within the text, as far down as can be seen; lines begin at `rows`.
  measure() {
    const size = this.spans.length, old = this.place, origin = this.text.getBoundingClientRect();
    const place = this.place = new Float32Array(3 * size); // left, top, width
    let at = Math.min(this.measured, size);
    place.set(old.subarray(0, 3 * at));
    const bottom = this.box.scrollTop + this.box.clientHeight + 200;
    for (; at < size && !(at && place[3 * at - 2] > bottom); at++) {
      const found = this.spans[at].getBoundingClientRect();
      place[3 * at] = found.left - origin.left;
      place[3 * at + 1] = found.top - origin.top;
      place[3 * at + 2] = found.width;
    }
    this.measured = at;
    this.letter = this.spans[0]?.getBoundingClientRect().height || 20;
    this.rows = [];
    for (let i = 0; i < at; i++) if (!i || Math.abs(place[3 * i + 1] - place[3 * i - 2]) > 20) this.rows.push(i);
  }

  // Paint what can be seen.
  paint() {
    const { box, canvas } = this, scale = devicePixelRatio || 1, wide = box.clientWidth, high = box.clientHeight;
    if (!wide || !this.reading) return;
    if (canvas.width !== Math.round(wide * scale) || canvas.height !== Math.round(high * scale)) {
      canvas.width = Math.round(wide * scale);
      canvas.height = Math.round(high * scale);
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${high}px`;
      canvas.style.marginBottom = `${-high}px`;
    }
    const pen = canvas.getContext("2d"), from = box.scrollTop - 80, to = box.scrollTop + high + 80;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, wide, high);
    pen.translate(0, -box.scrollTop);
    const row = this.rows.findLastIndex((i) => this.place[3 * i + 1] < from), first = row < 0 ? 0 : this.rows[row];
    for (let i = first; i < this.measured && this.place[3 * i + 1] < to; i++) this.paintOne(pen, i);
    if (this.here !== null) this.frame(pen);
  }

  paintOne(pen, i) {
    const { marks, place, letter } = this, look = colors(), hidden = $("panes").classList, { kind, label, leftwards } = this.chars[i];
    const x = place[3 * i], y = place[3 * i + 1], low = y + letter;
    const w = kind === "newline" ? 10 : Math.max(place[3 * i + 2], label ? 2 : 0), gap = marks.begin[i] ? 2 : 0;
    const fill = (color, left, top, width, height) => {
      pen.fillStyle = look[color];
      pen.fillRect(left, top, width, height);
    };
    if (!hidden.contains("no-chunks")) fill(this.flat ? "plain" : marks.odd[i] ? "odd" : "even", leftwards ? x : x + gap, y, w - gap + 0.3, letter);
    if (!hidden.contains("no-heat") && marks.heat[i]) {
      pen.fillStyle = look.bars[marks.heat[i]];
      pen.fillRect(x, y - 1 - marks.heat[i], Math.max(2, w - 1), marks.heat[i]);
    }
    const wide = marks.begin[i] ? 4 : 2, edge = leftwards ? x + w : x; // where the character begins
    if (!hidden.contains("no-p") && marks.p[i]) fill(marks.begin[i] ? "yes" : "maybe", leftwards ? edge - wide : edge, low + 1, wide, marks.p[i]);
    this.lanes.forEach((one, depth) => {
      if (hidden.contains(one.kind === "tokens" ? "no-tokens" : "no-outer")) return;
      const cut = one.begin[i] ? 2 : 0;
      fill(one.colors[one.odd[i] ? 0 : 1], leftwards ? x : x + cut, low + FIRST_LANE + LANE * depth, w - cut + 0.3, 5);
    });
    const middle = y + letter / 2, line = (color, left, top, bottom, dash) => {
      pen.strokeStyle = look[color];
      pen.lineWidth = 2;
      pen.setLineDash(dash);
      pen.beginPath();
      pen.moveTo(left, top);
      pen.lineTo(left, bottom);
      pen.stroke();
      pen.setLineDash([]);
    };
    if (kind) {
      pen.fillStyle = look[kind === "space" || kind === "newline" || kind === "tab" ? "soft" : "ring"];
      pen.textBaseline = "alphabetic";
      if (kind === "space" || kind === "nbsp") {
        pen.beginPath();
        pen.arc(x + w / 2, middle + 1, kind === "nbsp" ? 3 : 1.4, 0, 7);
        if (kind === "space") pen.fill();
        else {
          pen.strokeStyle = look.ring;
          pen.lineWidth = 1.5;
          pen.stroke();
        }
      } else if (kind === "newline" || kind === "tab") {
        pen.font = "15px ui-monospace, 'DejaVu Sans Mono', monospace";
        pen.fillText(kind === "tab" ? "→" : "↵", x, low - 4);
      } else if (label && place[3 * i + 2] < 2) { // it takes no room: its name would lie on its neighbours
        pen.beginPath();
        pen.moveTo(x - 3, y - 4);
        pen.lineTo(x + 3, y - 4);
        pen.lineTo(x, y + 3);
        pen.fill();
      } else if (label) {
        pen.font = "9px ui-monospace, 'DejaVu Sans Mono', monospace";
        pen.fillText(label, x, y - 2);
      }
    }
    if (marks.cut[i]) { // above and below, so that the letter can be read
      line("ink", x + w / 2, y - 1, y + 4, []);
      line("ink", x + w / 2, low - 4, low + 1, []);
    }
    if (marks.gone[i]) line("ghost", edge, y - 4, low + 12, [4, 3]);
    if (marks.come[i]) line("ring", edge, y - 4, low + 12, []);
    if (marks.differs[i]) {
      pen.strokeStyle = look.ring;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(leftwards ? edge - 1 : edge + 1, low + 6, 5, 0, 7);
      pen.stroke();
    }
  }

  // A frame around the byte that is looked at; behind the text, a mark where the next one would be.
  frame(pen) {
    const index = this.indexOf(this.here);
    pen.strokeStyle = colors().ink;
    pen.lineWidth = 2;
    pen.beginPath();
    if (index < this.measured) {
      const x = this.place[3 * index], w = this.chars[index].kind === "newline" ? 10 : this.place[3 * index + 2];
      pen.roundRect(x - 1, this.place[3 * index + 1] - 17, w + 2, this.letter + 32, 3);
    } else return;
    pen.stroke();
  }

  byteAt(event) { // under the pointer
    this.settle();
    if (!this.rows.length) return null;
    const origin = this.text.getBoundingClientRect(), x = event.clientX - origin.left, y = event.clientY - origin.top + 16;
    const line = this.rows.findLastIndex((i) => this.place[3 * i + 1] <= y + this.letter / 2);
    if (line < 0) return null;
    let i = this.rows[line];
    const end = this.rows[line + 1] ?? this.measured;
    while (i + 1 < end && this.place[3 * i + 3] <= x) i++;
    return this.chars[i].at;
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

  mark(at) { // the byte that is looked at
    if (this.here === at) return;
    this.here = at;
    this.later();
  }

  show(at) { // scroll it into view
    this.spans[this.indexOf(at)]?.scrollIntoView({ block: "nearest" });
  }

  found(name) { // the characters that bear a mark; for whoever wants to know what is drawn
    return Array.from(this.marks[name].keys()).filter((i) => this.marks[name][i]);
  }
}

function lane(boundary, names, kind = "level") {
  return { boundary, colors: names, kind, now: 0, odd: new Uint8Array(MOST_DRAWN), begin: new Uint8Array(MOST_DRAWN) };
}
