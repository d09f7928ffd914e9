"use strict";
// The live page: an editor over the picture, which is read anew, from the change on, whenever the text changes.

const SAMPLE = "Learned tokenization: the model itself decides where a chunk begins.\n" +
  "Change one letter and watch. Naïve café, 12,345.67, 你好，世界 — which of them does it know?";
const BURST = 1500; // milliseconds without a key, after which the next one begins an edit of its own

const coded = new TextEncoder(), decoded = new TextDecoder();
const client = Array.from(crypto.getRandomValues(new Uint8Array(8)), hex).join("");
const live = { panes: [], models: [], limit: Infinity, at: null, generating: false };

// ---- asking the server

const fragment = new URLSearchParams(location.hash.slice(1));
if (fragment.has("token")) { // kept for this tab, and out of the address that is copied
  sessionStorage.setItem("token", fragment.get("token"));
  fragment.delete("token");
  history.replaceState(null, "", `#${fragment}`);
}

function headers(kind) {
  const token = sessionStorage.getItem("token");
  return { "content-type": kind, "x-client": client, ...(token ? { authorization: `Bearer ${token}` } : {}) };
}

// The answer to a request; an Error with the server's sentence where it refuses. `later`: waiting may help.
async function ask(path, body, { kind = "application/json", signal } = {}) {
  const sent = kind === "application/json" && body !== undefined ? JSON.stringify(body) : body;
  const answer = await fetch(path, { method: body === undefined ? "GET" : "POST", body: sent, headers: headers(kind), signal });
  if (answer.ok) return answer;
  let said = `the server answered ${answer.status}`;
  try { said = (await answer.json()).error.message; } catch { /* not from our server */ }
  throw Object.assign(new Error(said), { later: answer.status === 429 || answer.status === 503 });
}

// The events of an answer that comes in pieces.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", more = await reader.read(); !more.done; more = await reader.read()) {
    const lines = (rest + more.value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// ---- the text

const editor = element("textarea", "editor");
Object.assign(editor, { spellcheck: false, autocapitalize: "off", autocomplete: "off", placeholder: "Type or paste a text" });
editor.setAttribute("aria-label", "your text");
editor.setAttribute("aria-describedby", "status");

let dirty = false, busy = false, keyed = 0, edited = 0;

function changed(event) {
  const now = performance.now();
  keyed ||= event?.timeStamp ?? now;
  if (now - edited > BURST) for (const one of live.panes) one.before = one.reading;
  edited = now;
  dirty = true;
  if (!busy) work();
}

async function work() {
  busy = true;
  while (dirty) {
    dirty = false;
    const since = keyed, text = editor.value, data = coded.encode(text);
    keyed = 0;
    try {
      if (data.length > live.limit) throw new Error(`That is ${data.length.toLocaleString("en")} bytes, and this server takes ${live.limit.toLocaleString("en")} at a time.`);
      await Promise.all(live.panes.map((one) => readInto(one, text, data)));
    } catch (error) {
      tellStatus(error.message, true);
      if (error.later) {
        await new Promise((done) => setTimeout(done, 500));
        dirty = true;
      }
      continue;
    }
    redraw();
    const { computed, milliseconds } = live.panes[0];
    if (since) painted(() => performance.measure("key to picture", { start: since, detail: { bytes: data.length, computed, milliseconds } }));
  }
  busy = false;
  score();
}

// Calls `then` once what was drawn can be seen.
function painted(then) {
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = then;
    channel.port2.postMessage(null);
  });
}

async function readInto(one, text, data) {
  if (one.sent && one.sent.length === data.length && commonStart(one.sent, data) === data.length) return;
  const from = one.reading && one.reading.data === one.sent ? commonStart(one.sent, data) : 0;
  const found = await (await ask("/read", { model: one.name, text, from })).json();
  const kept = found.data ? bytesOf(found.data) : data;
  one.reading = continued(one.reading, opened(found, kept), found.from);
  one.computed = found.computed;
  one.milliseconds = found.milliseconds;
  one.sent = data;
}

function redraw() {
  if (!live.panes[0]?.reading) return;
  const was = new Map();
  let moved = 0, touched = 0;
  for (const one of live.panes) {
    const old = one.before, level = one.reading ? levelOf(one.reading) : 0;
    if (live.generating || !old || old === one.reading || !old.levels[level]?.boundary || !one.reading) continue;
    const carried = carriedOver(old.data, old.levels[level].boundary, one.reading.data);
    was.set(one, carried);
    if (one !== live.panes[0]) continue;
    const now = one.reading.levels[level].boundary;
    for (let i = 0; i < now.length; i++) {
      if (carried[i] === 2) touched++;
      else moved += carried[i] !== now[i];
    }
  }
  drawPanes(live.panes, was);
  const { panes } = live, some = panes[0].reading?.data.length;
  say(some ? sentence(panes) : ["Write something, and see how it is read"], $("headline"));
  $("legend-edit").hidden = !moved;
  const said = [];
  if (panes.length === 2 && some) said.push(agreement(panes[0].reading, panes[1].reading));
  if (was.size && (moved || touched)) said.push(moved ? `Your edit moved ${moved} ${moved === 1 ? "boundary" : "boundaries"} elsewhere.` : "Your edit moved no boundary elsewhere.");
  if (panes[0].picture.chars.length > MOST_DRAWN) said.push(`Only the first ${MOST_DRAWN.toLocaleString("en")} characters are drawn.`);
  tellStatus(said.filter(Boolean).join(" "));
  follow();
}

function tellStatus(text, wrong = false) {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

// ---- where the caret is, and what is there

const byteOf = (index) => coded.encode(editor.value.slice(0, index)).length;
const indexOf = (at) => decoded.decode(live.panes[0].reading.data.subarray(0, at)).length;

function follow() { // the caret; while somebody points, the pointer
  if (!live.panes[0].reading) return;
  look(live.at ?? byteOf(editor.selectionStart));
}

function look(at) {
  const readings = live.panes.filter((one) => one.reading), size = readings[0].reading.data.length;
  at = Math.min(at, size);
  const same = readings.filter((one) => one.reading.data.length === size);
  for (const one of same) one.picture.mark(at);
  tell($("facts"), same, at, put);
}

function point(at, kind) {
  if (live.at === at) return;
  live.at = kind === "click" ? null : at;
  follow();
}

function put(piece, at) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(piece);
  } catch {
    tellStatus("That is half a character, which an editor cannot hold.", true);
    return;
  }
  const index = indexOf(at);
  editor.focus();
  editor.setRangeText(text, index, index, "end");
  changed();
}

// ---- models

function choose() {
  const names = [$("model").value, $("compare").value].filter(Boolean);
  const old = live.panes;
  live.panes = names.map((name, place) => {
    const known = old.find((one, at) => one.name === name && at === place);
    if (known) return known;
    const made = pane(name, point), info = live.models.find((one) => one.id === name);
    made.box.addEventListener("pointerleave", () => { live.at = null; follow(); });
    made.unit = info.chunking === "soft" ? "b" : "p";
    if (place) {
      made.text.tabIndex = 0;
      made.text.setAttribute("aria-label", `the text as ${name} reads it`);
    } else {
      made.text.setAttribute("aria-hidden", "true");
      made.box.classList.add("edited");
      made.box.append(editor);
    }
    return made;
  });
  $("panes").replaceChildren(...live.panes.map((one) => one.section));
  fit(live.panes.map((one) => live.models.find((info) => info.id === one.name)), live.reference);
  for (const one of live.panes) one.before = null;
  dirty = true;
  if (!busy) work();
}

// ---- bits per byte beside the usual compressors

let scoring = null, scored = "";

async function score() {
  const text = editor.value;
  scoring?.abort();
  if (!text || live.generating || coded.encode(text).length > live.limit) return bars([]);
  if (text === scored) return bars(live.others);
  const mine = scoring = new AbortController();
  await new Promise((done) => setTimeout(done, 150));
  if (mine.signal.aborted) return;
  try {
    const found = await (await ask("/score", { model: live.panes[0].name, text }, { signal: mine.signal })).json();
    live.others = found.compressors;
    scored = text;
    bars(live.others);
  } catch { /* another text has come, or the server is busy: the next one will tell */ }
}

function bars(others) {
  const rows = live.panes.filter((one) => one.reading?.bpb).map((one) => ({ name: one.name, bpb: one.reading.bpb, own: true }));
  rows.push(...others.map((one) => ({ name: one.name, bpb: one.bpb })));
  rows.sort((one, two) => one.bpb - two.bpb);
  const most = Math.max(8, ...rows.map((one) => Math.min(16, one.bpb)));
  $("scores").replaceChildren(...rows.flatMap(({ name, bpb, own }) => {
    const value = element("dd", own ? "own" : "", bpb.toFixed(2)), drawn = element("dd");
    drawn.append(bar(bpb / most, own ? "" : "other"));
    return [element("dt", own ? "own" : "", name), drawn, value];
  }));
  const sizes = live.panes.map((one) => live.models.find((info) => info.id === one.name).bytes / 1e6);
  $("score-note").textContent = rows.length
    ? `Less is better. Compressors with their headers, which weigh on short texts; the ${sizes.map((size) => size.toFixed(1)).join(" and ")} MB of the model itself are not counted.`
    : "";
}

// ---- begin

async function begin() {
  controls(redraw);
  let found;
  try {
    found = await (await ask("/v1/models")).json();
  } catch (error) {
    $("headline").textContent = error.message;
    return;
  }
  Object.assign(live, { models: found.data, limit: found.limit, reference: found.reference, magic: found.magic, others: [] });
  for (const { id } of found.data) {
    $("model").append(new Option(id));
    $("compare").append(new Option(id));
  }
  $("compare").prepend(new Option("nothing", "", true, true));
  $("compare-label").hidden = found.data.length < 2;
  const shared = await sharedText();
  if (found.data.some((one) => one.id === fragment.get("m"))) $("model").value = fragment.get("m");
  if (found.data.some((one) => one.id === fragment.get("c"))) $("compare").value = fragment.get("c");
  editor.value = shared ?? SAMPLE;
  for (const id of ["model", "compare"]) $(id).addEventListener("change", choose);
  editor.addEventListener("input", changed);
  document.addEventListener("selectionchange", () => {
    if (document.activeElement !== editor) return;
    live.at = null;
    if (!busy) follow(); // else the text has changed, and what comes of it is about to be drawn
  });
  choose();
  about();
}

function about() {
  $("about").textContent = live.models
    .map((one) => `${one.id}: ${(one.parameters / 1e6).toFixed(1)} million weights in ${(one.bytes / 1e6).toFixed(1)} MB, ${one.tokenizer}, windows of ${one.window.toLocaleString("en")} tokens`)
    .join(" · ");
}
