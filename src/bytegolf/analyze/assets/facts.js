"use strict";
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
          parts.push(fact(`${many ? `${unit}, level ${depth}` : `${unit} of a boundary`}${where}`, bar(level.p[k] === NOTHING ? 0 : level.p[k] / 10000), element("b", "", said)));
        }
        const [start, end] = chunkAt(level.boundary, one.at), cut = Math.min(end, start + 48);
        const text = `${shown(data, start, cut)}${end > cut ? "…" : ""}`;
        parts.push(fact(many ? `chunk, level ${depth}` : "chunk", element("code", "", text), element("b", "", `${end - start} ${end - start === 1 ? "byte" : "bytes"}`)));
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
