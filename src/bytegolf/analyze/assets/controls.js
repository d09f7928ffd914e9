"use strict";
// What a live page and a still one share: which lanes are shown, the theme, and a pane for each model.

const LANES = { chunks: "no-chunks", heat: "no-heat", p: "no-p", outer: "no-outer", tokens: "no-tokens" };

function controls(redraw) {
  for (const [name, kind] of Object.entries(LANES)) {
    $(`show-${name}`).addEventListener("change", (event) => {
      $("panes").classList.toggle(kind, !event.target.checked);
      redraw();
    });
  }
  $("level").addEventListener("change", redraw);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const name = () => {
    $("theme").textContent = theme() === "dark" ? "Light" : "Dark";
    palette = null;
    redraw();
  };
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  $("theme").textContent = theme() === "dark" ? "Light" : "Dark";
}

// Fit the controls to models: [{levels, chunking}], and the name of a reference tokenizer.
function fit(models, reference) {
  const depth = Math.max(...models.map((one) => one.levels));
  const soft = models.some((one) => one.chunking === "soft"), routers = models.some((one) => one.chunking === "router");
  const unit = soft ? (routers ? "p or b" : "b") : "p";
  $("unit").textContent = unit;
  $("depth").textContent = soft && !routers ? "layer" : "level";
  const before = Number($("level").value) || 0;
  $("level").replaceChildren(...Array.from({ length: depth }, (_, at) => new Option(at ? `${at} and outer` : depth > 1 ? "all" : "0", at)));
  $("level").value = Math.min(before, Math.max(0, depth - 1));
  $("level-label").hidden = depth < 2;
  $("outer-label").hidden = $("legend-outer").hidden = depth < 2;
  $("tokens-label").hidden = $("legend-tokens").hidden = !reference;
  $("reference").textContent = $("legend-reference").textContent = `${reference ?? ""} tokens`;
  for (const one of document.querySelectorAll(".chunked")) one.hidden = !depth;
  $("legend-ring").hidden = models.length < 2 || depth < 1;
  const lanes = Math.max(0, depth - 1) + (reference ? 1 : 0);
  $("panes").classList.remove("tall", "taller", "tallest");
  if (lanes) $("panes").classList.add(["tall", "taller", "tallest"][Math.min(3, lanes) - 1]);
  $("panes").classList.toggle("two", models.length > 1);
  return unit;
}

function pane(name, point) {
  const section = element("section"), box = element("div", "box"), text = element("pre", "text");
  box.append(text);
  section.append(element("h3", "", name), box);
  return { name, section, box, text, picture: new Picture(box, text, point), reading: null };
}

// The chosen level of a reading, as far down as it has any.
function levelOf(reading) {
  return Math.max(0, Math.min(Number($("level").value) || 0, reading.levels.length - 1));
}

// Draw the panes' readings, ringed where two of one text differ.
function drawPanes(panes, was) {
  const [one, two] = panes;
  const same = two?.reading && one.reading && two.reading.data.length === one.reading.data.length;
  for (const each of panes) {
    if (!each.reading) continue;
    const level = levelOf(each.reading), other = same && (each === one ? two : one).reading;
    const boundary = other && other.levels[levelOf(other)]?.boundary;
    each.picture.draw(each.reading, { level, was: was?.get(each) ?? null, other: boundary && each.reading.levels.length ? boundary : null });
  }
}

// One line on what each model made of the text.
function sentence(panes) {
  const said = panes.filter((one) => one.reading?.data.length).map(({ name, reading }) => {
    const size = reading.data.length, chunks = reading.levels.map((level) => countOf(level.boundary));
    const cut = chunks.length
      ? ` in ${chunks.map((count) => count.toLocaleString("en")).join(" → ")} chunks of ${chunks.map((count) => (size / count).toFixed(1)).join(" → ")} bytes`
      : "";
    return `${name}: ${size.toLocaleString("en")} bytes${cut}${reading.bpb ? `, ${reading.bpb.toFixed(2)} bits per byte` : ""}`;
  });
  return said;
}

// Lines below each other, in place of what `target` has.
function say(lines, target) {
  target.replaceChildren(...lines.map((line) => element("span", "line", line)));
}

// How far two readings of a text agree on where chunks start.
function agreement(one, two) {
  const a = one.levels[levelOf(one)]?.boundary, b = two.levels[levelOf(two)]?.boundary;
  if (!a || !b || a.length !== b.length) return "";
  const both = a.reduce((sum, flag, at) => sum + (flag & b[at]), 0), any = countOf(a) + countOf(b) - both;
  return any ? `They agree on ${both} of ${any} boundaries.` : "";
}
