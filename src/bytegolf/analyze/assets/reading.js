"use strict";
// A text as a model read it, and what can be worked out from that. Nothing here touches the page.

const NOTHING = 65535; // stands for a number that is not there
const OFFSET = 4; // token id of byte 0 in a byte model; 1 and 2 end a text

const bytesOf = (base64) => {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
  return found;
};
const shortsOf = (base64) => { // little-endian, whatever the machine is
  const raw = bytesOf(base64), found = new Uint16Array(raw.length / 2);
  for (let i = 0; i < found.length; i++) found[i] = raw[2 * i] | (raw[2 * i + 1] << 8);
  return found;
};
const hex = (byte) => byte.toString(16).padStart(2, "0");

// How many bytes a well-formed UTF-8 character has at i; 0 where there is none.
function sizeAt(data, i) {
  const first = data[i];
  if (first < 0x80) return 1;
  const size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || i + size > data.length) return 0;
  for (let k = 1; k < size; k++) if ((data[i + k] & 0xc0) !== 0x80) return 0;
  const second = data[i + 1]; // too long, half a surrogate pair, beyond Unicode
  const bad = (first === 0xe0 && second < 0xa0) || (first === 0xed && second > 0x9f) ||
    (first === 0xf0 && second < 0x90) || (first === 0xf4 && second > 0x8f);
  return bad ? 0 : size;
}

function codeAt(data, i, size) {
  if (size === 1) return data[i];
  let code = data[i] & (0x7f >> size);
  for (let k = 1; k < size; k++) code = (code << 6) | (data[i + k] & 0x3f);
  return code;
}

const SPACES = { 0x20: "space", 0xa0: "no-break space", 0x3000: "ideographic space", 0x202f: "narrow no-break space" };
const UNSEEN = /[\p{C}\p{Z}]/u;
const LEFTWARDS = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u; // begins at its right edge

// The characters of a text: where each begins, its bytes, what to show of it, and its kind. Whether a boundary falls
// inside does not matter: a character is always whole. Only a byte that is no UTF-8 is shown in hexadecimal.
function characters(data) {
  const found = [];
  for (let at = 0; at < data.length;) {
    const size = sizeAt(data, at);
    if (!size) {
      found.push({ at, size: 1, text: hex(data[at]).toUpperCase(), kind: "raw", name: "no UTF-8", units: 1 });
      at += 1;
      continue;
    }
    const code = codeAt(data, at, size), text = String.fromCodePoint(code);
    const one = { at, size, text, kind: "", name: "", units: text.length, leftwards: code > 0x58f && LEFTWARDS.test(text) };
    if (code === 10) Object.assign(one, { kind: "newline", name: "line end" });
    else if (code === 9) Object.assign(one, { kind: "tab", name: "tab" });
    else if (code === 13) Object.assign(one, { kind: "control", name: "carriage return", label: "CR" });
    else if (SPACES[code]) Object.assign(one, { kind: code === 32 ? "space" : "nbsp", name: SPACES[code] });
    else if (UNSEEN.test(text)) {
      const label = code.toString(16).toUpperCase().padStart(4, "0");
      Object.assign(one, { kind: "control", name: `U+${label}`, label });
    }
    found.push(one);
    at += size;
  }
  return found;
}

// A stretch of bytes for a line of facts: characters whole, what is only half there in hexadecimal.
function shown(data, start, end) {
  const marks = { newline: "↵", tab: "→", space: "·", nbsp: "⍽" };
  return characters(data.subarray(start, end))
    .map((one) => marks[one.kind] ?? (one.kind === "raw" ? `‹${one.text.toLowerCase()}›` : one.label ? `‹${one.label}›` : one.text))
    .join("");
}

// What the page's data or the server says of a text, with its arrays opened.
function opened(found, data) {
  const expected = found.expected && {
    k: found.expected.k, pieces: found.expected.pieces,
    ids: shortsOf(found.expected.ids), p: shortsOf(found.expected.p),
  };
  return {
    data, bits: shortsOf(found.bits), expected, windows: found.windows ?? [],
    levels: found.levels.map((one) => ({ p: shortsOf(one.p), boundary: bytesOf(one.boundary) })),
    tokens: found.tokens ? bytesOf(found.tokens) : null,
    reference: found.reference ? bytesOf(found.reference) : null, bpb: found.bpb,
  };
}

const spliced = (old, at, fresh) => {
  const found = new fresh.constructor(at + fresh.length);
  found.set(old.subarray(0, at));
  found.set(fresh, at);
  return found;
};

// An answer from the byte `from` on, put behind what an older reading has of the same beginning.
function continued(old, fresh, from) {
  if (!from) return fresh;
  const k = fresh.expected.k;
  return {
    ...fresh,
    bits: spliced(old.bits, from, fresh.bits),
    levels: fresh.levels.map((one, at) => ({
      p: spliced(old.levels[at].p, from, one.p), boundary: spliced(old.levels[at].boundary, from, one.boundary),
    })),
    expected: {
      k, pieces: fresh.expected.pieces,
      ids: spliced(old.expected.ids, from * k, fresh.expected.ids), p: spliced(old.expected.p, from * k, fresh.expected.p),
    },
  };
}

function commonStart(one, two) {
  const most = Math.min(one.length, two.length);
  let at = 0;
  while (at < most && one[at] === two[at]) at++;
  return at;
}

function commonEnd(one, two, most) {
  let size = 0;
  while (size < most && one[one.length - 1 - size] === two[two.length - 1 - size]) size++;
  return size;
}

// Where the chunks of an older text would lie in a newer one: 1 for a boundary that was there, 2 for bytes that are new.
function carriedOver(old, oldBoundary, data) {
  const start = commonStart(old, data);
  const end = commonEnd(old, data, Math.min(old.length, data.length) - start);
  const found = new Uint8Array(data.length).fill(2, start, data.length - end);
  found.set(oldBoundary.subarray(0, start));
  found.set(oldBoundary.subarray(old.length - end), data.length - end);
  return found;
}

function chunkAt(boundary, at) {
  let start = at, end = at + 1;
  while (start > 0 && !boundary[start]) start--;
  while (end < boundary.length && !boundary[end]) end++;
  return [start, end];
}

const countOf = (flags) => flags.reduce((sum, one) => sum + one, 0);

// The row of `expected` that is about the byte at `at`: of a byte model the byte itself, else the token that begins there.
function rowAt(reading, at) {
  if (!reading.tokens) return at;
  if (at < reading.data.length && !reading.tokens[at]) return -1;
  return countOf(reading.tokens.subarray(0, at));
}

// The likeliest tokens at a byte: [{label, piece (bytes, or null where the text would end), share}].
function candidatesAt(reading, at) {
  const row = reading.expected ? rowAt(reading, at) : -1;
  if (row < 0) return [];
  const { k, ids, p, pieces } = reading.expected, found = [];
  for (let i = row * k; i < (row + 1) * k && i < ids.length; i++) {
    const id = ids[i];
    const piece = id < OFFSET ? null : reading.tokens ? bytesOf(pieces[id] ?? "") : Uint8Array.of(id - OFFSET);
    found.push({ id, piece, label: piece ? shown(piece, 0, piece.length) : id < 3 ? "end" : "unknown", share: p[i] / 10000 });
  }
  return found;
}

const bitsOf = (value) => (value === NOTHING || value === undefined ? "–" : (value / 1000).toFixed(2));
const shareOf = (value) => (value === NOTHING || value === undefined ? "–" : (value / 10000).toFixed(3));
