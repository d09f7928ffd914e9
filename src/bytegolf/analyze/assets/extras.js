"use strict";
// What the live page does besides reading: generate, work on files, links that hold the text, keys.

const MOST_PROMPT = 16384; // characters of a text's end that are continued: more than any window sees

let halting = null;

const escapes = (text) => text.replaceAll("\\n", "\n").replaceAll("\\t", "\t");

const ending = (text) => (text.length > MOST_PROMPT ? text.slice(-MOST_PROMPT).replace(/^[\udc00-\udfff]/, "") : text);

async function generate() {
  if (live.generating) return;
  const number = (id) => Number($(id).value), before = editor.value, started = performance.now();
  const asked = {
    model: $("model").value, prompt: ending(before), stream: true, max_tokens: number("max-tokens"),
    temperature: number("temperature"), top_p: number("top-p"), stop: escapes($("stop").value) || null,
  };
  halting = new AbortController();
  live.generating = true;
  for (const one of live.panes) one.before = null;
  $("go").disabled = editor.readOnly = true;
  $("halt").disabled = false;
  const told = (what) => {
    const size = coded.encode(editor.value).length - coded.encode(before).length, seconds = (performance.now() - started) / 1000;
    $("generated").textContent = `${size.toLocaleString("en")} bytes in ${seconds.toFixed(1)} s${what}`;
  };
  $("generated").classList.remove("error");
  try {
    for await (const event of events(await ask("/v1/completions", asked, { signal: halting.signal }))) {
      for (const { text, finish_reason: reason } of event.choices) {
        if (text) {
          editor.value += text;
          changed();
        }
        told(reason === "stop" ? ", to its end" : "");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") told(", stopped");
    else {
      $("generated").textContent = error.message;
      $("generated").classList.add("error");
    }
  }
  halting = null;
  live.generating = editor.readOnly = $("go").disabled = false;
  $("halt").disabled = true;
  edited = -Infinity; // what comes next is an edit of its own
  if (!busy) score();
}

// ---- files

let working = null;

async function take(file) {
  working?.abort();
  const mine = working = new AbortController(), out = $("file-out");
  const bytes = new Uint8Array(await file.arrayBuffer());
  const start = Array.from(bytes.subarray(0, live.magic.length / 2), hex).join("");
  const packed = start === live.magic, verb = packed ? "decompress" : "compress";
  const note = element("p", "small"), progress = element("progress"), cancel = element("button", "", "Stop");
  progress.setAttribute("aria-label", `how far ${file.name} is`);
  cancel.type = "button";
  cancel.addEventListener("click", () => mine.abort());
  const name = (text) => { note.textContent = text; };
  name(`${file.name}: ${bytes.length.toLocaleString("en")} bytes. ${packed ? "Decompressing" : "Compressing"} …`);
  out.replaceChildren(note, progress, cancel);
  if (!packed && isText(bytes)) {
    const read = element("button", "", "Read it instead");
    read.type = "button";
    read.addEventListener("click", () => {
      mine.abort();
      editor.value = decoded.decode(bytes);
      changed();
      out.replaceChildren();
    });
    out.append(" ", read);
  }
  try {
    if (bytes.length > live.limit * 1.1 + 4096) throw new Error(`${file.name} has ${bytes.length.toLocaleString("en")} bytes, and this server takes ${live.limit.toLocaleString("en")} at a time.`);
    const path = `/${verb}?events=1&model=${encodeURIComponent($("model").value)}`;
    const answer = await ask(path, bytes, { kind: "application/octet-stream", signal: mine.signal });
    for await (const event of events(answer)) {
      if (event.base64 === undefined) {
        if (!packed && bytes.length) progress.value = event.done / bytes.length;
        continue;
      }
      const made = bytesOf(event.base64), link = element("a", "", `Save ${target(file.name, packed)}`);
      link.href = URL.createObjectURL(new Blob([made]));
      link.download = target(file.name, packed);
      const bits = packed ? "" : `, ${((8 * made.length) / Math.max(1, bytes.length)).toFixed(2)} bits per byte`;
      name(`${file.name}: ${bytes.length.toLocaleString("en")} → ${made.length.toLocaleString("en")} bytes${bits}. `);
      note.append(link);
      out.replaceChildren(note);
    }
  } catch (error) {
    const line = element("p", "small error", error.name === "AbortError" ? "Stopped." : error.message);
    if (mine === working) out.replaceChildren(line);
  }
}

const target = (name, packed) => (packed ? name.replace(/\.bgz$/, "") + (name.endsWith(".bgz") ? "" : ".out") : `${name}.bgz`);

function isText(bytes) {
  try {
    return !new TextDecoder("utf-8", { fatal: true }).decode(bytes).includes("\0");
  } catch {
    return false;
  }
}

$("file").addEventListener("change", (event) => { if (event.target.files.length) take(event.target.files[0]); });
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dragged");
  });
}
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragged"); });
addEventListener("drop", (event) => {
  document.body.classList.remove("dragged");
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});

// ---- links that hold the text: deflated, in the fragment, which no server gets to see

const base64url = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
const fromBase64url = (text) => bytesOf(text.replaceAll("-", "+").replaceAll("_", "/"));
const through = async (bytes, stream) => new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());

async function sharedText() {
  try {
    if (fragment.has("z")) return decoded.decode(await through(fromBase64url(fragment.get("z")), new DecompressionStream("deflate-raw")));
    if (fragment.has("t")) return fragment.get("t");
  } catch { /* a link that was cut off */ }
  return null;
}

async function share() {
  const parts = new URLSearchParams({ m: $("model").value });
  if ($("compare").value) parts.set("c", $("compare").value);
  parts.set("z", base64url(await through(coded.encode(editor.value), new CompressionStream("deflate-raw"))));
  history.replaceState(null, "", `#${parts}`);
  let said = "The link is in the address bar";
  try {
    await navigator.clipboard.writeText(location.href);
    said = "Copied";
  } catch { /* only pages from this machine, or over https, may copy */ }
  $("share").textContent = said;
  setTimeout(() => { $("share").textContent = "Copy link"; }, 2000);
}

$("share").addEventListener("click", share);

// ---- keys

$("show-keys").addEventListener("click", () => $("keys").showModal());
$("generate").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
$("halt").addEventListener("click", () => halting?.abort());
addEventListener("keydown", (event) => {
  const inList = document.activeElement?.closest(".candidates");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  } else if (event.key === "Escape" && !$("keys").open) {
    if (inList) editor.focus();
    halting?.abort();
    working?.abort();
  } else if (event.altKey && event.key.toLowerCase() === "l") {
    event.preventDefault();
    share();
  } else if (event.altKey && event.key === "ArrowDown" && document.activeElement === editor) {
    event.preventDefault();
    document.querySelector("button.candidate")?.focus();
  } else if (inList && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    event.preventDefault();
    const all = [...inList.querySelectorAll("button.candidate")];
    all[all.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
  }
});

begin();
