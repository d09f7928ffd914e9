"use strict";
// The page of an analysis: the same pictures, of texts that do not change.

const page = JSON.parse(document.getElementById("data").textContent);
let panes = [], here = 0;

function point(at) {
  if (!panes.length || at >= panes[0].reading.data.length) return;
  here = at;
  const same = panes.filter((one) => one.reading.data.length === panes[0].reading.data.length);
  for (const one of same) one.picture.mark(at);
  tell($("facts"), same.map((one) => ({ ...one, unit: page.unit })), at);
}

function show() {
  const text = page.texts[$("text").value];
  page.models.forEach((model, at) => {
    const found = text.models[at];
    panes[at].reading = found.levels[0]?.p.buffer ? found : (text.models[at] = opened(found, bytesOf(found.data)));
  });
  drawPanes(panes);
  say(sentence(panes), $("headline"));
  $("status").textContent = panes.length === 2 ? agreement(panes[0].reading, panes[1].reading) : "";
}

page.unit = fit(page.models, page.reference);
panes = page.models.map((model) => pane(model.name, point));
$("panes").replaceChildren(...panes.map((one) => one.section));
for (const one of panes) {
  one.text.tabIndex = 0;
  one.text.setAttribute("role", "group");
  one.text.setAttribute("aria-label", `the text as ${one.name} reads it; arrow keys walk through it`);
  one.text.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key], { chars } = one.picture;
    if (!way || !chars.length) return;
    event.preventDefault();
    const next = one.picture.here === null ? 0 : Math.max(0, Math.min(chars.length - 1, one.picture.indexOf(here) + way));
    point(chars[next].at);
    one.picture.show(here);
  });
}
page.texts.forEach((text, index) => $("text").append(new Option(text.name, index)));
$("text").parentElement.hidden = page.texts.length < 2;
$("text").addEventListener("change", show);
controls(show);
show();
