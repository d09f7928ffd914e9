"""The pages in a browser: typing, editing, comparing, generating, files, links, keys, a phone, contrast."""

from __future__ import annotations

import base64
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from commands import TinyRun, good
from processes import until

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytestmark = pytest.mark.skipif(browser.find() is None, reason="no Chromium")

from bytegolf.tools.serve.routes import application  # noqa: E402
from bytegolf.tools.serve.served import Collection, Served  # noqa: E402
from bytegolf.tools.serve.worker import Worker  # noqa: E402

SETTLED = "typeof live !== 'undefined' && live.panes.length > 0 && live.panes.every((one) => one.reading) && !busy"
STARTS = "live.panes.map((one) => one.picture.found('begin'))"


@pytest.fixture(scope="module")
def models(tiny_run: TinyRun, two_level_run: TinyRun, subword_run: TinyRun) -> Collection:
    runs = (tiny_run, two_level_run, subword_run)
    return Collection.open([run.folder for run in runs], tiny_run.data, limit=20_000)


@pytest.fixture(scope="module")
def address(models: Collection) -> Iterator[str]:
    """A real server's."""
    server = uvicorn.Server(uvicorn.Config(application(models, Worker()), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield f"http://localhost:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    with browser.running() as found:
        yield found


@pytest.fixture
def page(chromium: browser.Browser, address: str) -> Iterator[browser.Browser]:
    """The live page with an empty text and the caret in it, that complains of nothing."""
    chromium.open(address)
    chromium.until(SETTLED)
    chromium.run("editor.focus(); editor.value = ''; changed()")
    chromium.until(f"{SETTLED} && !editor.value && live.panes[0].reading.data.length === 0")
    yield chromium
    assert not chromium.errors


def write(page: browser.Browser, text: str) -> None:
    page.run(f"editor.value = {json.dumps(text)}; edited = -Infinity; changed()")
    page.until(SETTLED)


@pytest.fixture(scope="module")
def first(models: Collection) -> Served:
    return models.named("hnet")


def test_typing_shows_what_the_model_makes_of_it(page: browser.Browser, first: Served) -> None:
    text = "The people of the naïve café"
    page.type(text)
    page.until(f"{SETTLED} && editor.value.length === {len(text)}")
    assert page.run("live.panes[0].picture.spans.map((span) => span.textContent).join('')") == text
    offsets = [len(text[:at].encode()) for at in range(len(text))]
    starts = [offsets[at] for at in page.run(STARTS)[0]]
    own = first.model.boundaries(text)
    assert starts == [at for at in own if at in offsets]
    inside = {max(at for at in offsets if at < cut) for cut in own if cut not in offsets}
    cut = page.run("live.panes[0].picture.found('cut')")
    assert {offsets[at] for at in cut} == inside, "a character that a boundary crosses is drawn whole, and marked"
    assert page.run("document.getElementById('headline').textContent").startswith("hnet: 30 bytes in ")
    assert page.run("document.querySelectorAll('.candidate').length") == 8, "the caret is at the end: what comes next"
    page.until("document.querySelectorAll('#scores dt').length >= 5")
    assert "xz -9e" in page.run("document.getElementById('scores').textContent")
    page.type("s")
    page.until(f"{SETTLED} && live.panes[0].reading.data.length === 31")
    page.until("performance.getEntriesByName('key to picture').at(-1).detail.bytes === 31")
    last = page.run("performance.getEntriesByName('key to picture').at(-1).detail")
    assert last["computed"] == 1, "what lies before the change is not computed again"


def test_an_edit_leaves_ghosts(page: browser.Browser, first: Served) -> None:
    before, after = "The people of the states and of peace", "The pXople of the states and of peace"
    write(page, before)
    page.run("edited = -Infinity; editor.setRangeText('X', 5, 6, 'end'); changed()")
    page.until(f"{SETTLED} && !busy")
    old, new = set(first.model.boundaries(before)), set(first.model.boundaries(after))
    marked = {kind: page.run(f"live.panes[0].picture.found('{kind}').length") for kind in ("gone", "come")}
    assert marked == {"gone": len(old - new - {5}), "come": len(new - old - {5})}
    assert page.run("document.getElementById('status').textContent").startswith("Your edit moved ")
    assert page.run("document.getElementById('facts').textContent").startswith("o byte 7 of 37")


def test_two_models_side_by_side(page: browser.Browser, models: Collection) -> None:
    text = "The people of the states and of peace"
    write(page, text)
    page.run("document.getElementById('compare').value = 'two'; choose()")
    page.until(f"{SETTLED} && live.panes.length === 2")
    one, two = (set(models.named(name).model.boundaries(text)) for name in ("hnet", "two"))
    assert page.run(STARTS) == [sorted(one), sorted(two)]
    assert page.run("live.panes.map((one) => one.picture.found('differs').length)") == 2 * [len(one ^ two)]
    assert f"They agree on {len(one & two)} of {len(one | two)} boundaries." in page.run("document.body.textContent")
    inner = page.run(
        "[...live.panes[1].picture.lanes[0].begin.keys()].filter((i) => live.panes[1].picture.lanes[0].begin[i])"
    )
    assert inner == models.named("two").model.boundaries(text, 1), "outer levels are stacked below"
    page.run("document.getElementById('compare').value = 'subwords'; choose()")
    page.until(f"{SETTLED} && live.panes[1].name === 'subwords'")
    assert page.run("document.querySelectorAll('#facts .candidates').length") == 2
    assert page.run("document.getElementById('headline').textContent").count("bytes in") == 2


def without_end(*asked: object) -> Iterator[tuple[int, bytes]]:
    """In place of a model's text, which may end before it is stopped."""
    while True:
        time.sleep(0.01)
        yield 0, b"a"


def test_generating_streams_into_the_text_and_stops(
    page: browser.Browser, first: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(page, "The people ")
    page.run("document.getElementById('max-tokens').value = 30; document.getElementById('temperature').value = 0")
    page.press("Enter", ctrl=True)
    page.until(f"document.getElementById('generated').textContent && !live.generating && {SETTLED}")
    assert page.run("editor.value") == "The people " + first.model.generate("The people ", 30, 0.0, 0.95)
    assert page.run("live.panes[0].reading.data.length") == len(page.run("editor.value").encode())
    write(page, "The people ")
    asked: list[tuple[Any, ...]] = []
    drawn = first.model.generate_bytes

    def noted(*args: Any, **more: Any) -> Any:
        asked.append(args)
        return drawn(*args, **more)

    monkeypatch.setattr(first.model, "generate_bytes", noted)
    page.run("$('temperature').value = 0.7; $('top-p').value = 0.9; $('stop').value = 'e'")
    page.press("Enter", ctrl=True)
    page.until(f"!live.generating && {SETTLED}")
    assert asked[0][3:5] == (0.7, 0.9)
    assert "e" not in page.run("editor.value").removeprefix("The people ")
    page.run("$('stop').value = ''")
    monkeypatch.setattr(first.model, "generate_bytes", without_end)
    page.run("document.getElementById('max-tokens').value = 4096")
    page.press("Enter", ctrl=True)
    size = page.run("editor.value.length")
    page.until(f"editor.value.length > {size}")
    page.press("Escape")
    page.until(f"!live.generating && {SETTLED}")
    assert page.run("document.getElementById('generated').textContent").endswith("stopped")
    assert not page.run("editor.readOnly")


def choose_file(page: browser.Browser, path: Path) -> None:
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def test_files_are_compressed_and_come_back(page: browser.Browser, first: Served, tmp_path: Path) -> None:
    content = ("The café of the people. " * 6).encode() + b"\xff\x00"
    (tmp_path / "letter.txt").write_bytes(content)
    page.run("const make = URL.createObjectURL; URL.createObjectURL = (blob) => make(window.saved = blob)")
    fetched = "saved.arrayBuffer().then((found) => btoa(String.fromCharCode(...new Uint8Array(found))))"
    choose_file(page, tmp_path / "letter.txt")
    page.until("document.querySelector('#file-out a')?.download === 'letter.txt.bgz'")
    packed = base64.b64decode(page.run(fetched))
    assert packed == first.model.compress(content)
    (tmp_path / "letter.txt.bgz").write_bytes(packed)
    choose_file(page, tmp_path / "letter.txt.bgz")
    page.until("document.querySelector('#file-out a')?.download === 'letter.txt'")
    assert base64.b64decode(page.run(fetched)) == content
    page.run(
        "const held = new DataTransfer(); held.items.add(new File(['The people'], 'dropped.txt')); "
        "document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: held, bubbles: true, cancelable: true })); 1"
    )
    page.until("document.querySelector('#file-out a')?.download === 'dropped.txt.bgz'")
    assert base64.b64decode(page.run(fetched)) == first.model.compress("The people")
    (tmp_path / "large").write_bytes(bytes(1_000_000))
    choose_file(page, tmp_path / "large")
    page.until("document.querySelector('#file-out .error') !== null")
    assert "20,000" in page.run("document.querySelector('#file-out').textContent")


def test_a_paste_that_is_too_long_is_refused_in_words(page: browser.Browser) -> None:
    page.run("editor.value = 'a'.repeat(30000); changed()")
    page.until("document.querySelector('#status.error') !== null")
    assert "20,000" in page.run("document.getElementById('status').textContent")
    write(page, "short again")
    assert page.run("document.getElementById('headline').textContent").startswith("hnet: 11 bytes")


def test_everything_by_keyboard(page: browser.Browser) -> None:
    page.type("The ")
    page.until(f"{SETTLED} && live.panes[0].reading.data.length === 4")
    page.press("ArrowDown", alt=True)
    while page.run("document.activeElement.querySelector('code').textContent.startsWith('‹')"):  # half a character
        page.press("ArrowDown")
    assert page.run("document.activeElement.classList.contains('candidate')")
    label = page.run("document.activeElement.querySelector('code').textContent")
    page.press("Enter")
    page.until(f"{SETTLED} && editor.value.length === 5 && document.activeElement === editor")
    assert page.run("shown(live.panes[0].reading.data, 4, 5)") == label
    seen = set()
    for _ in range(40):  # Tab reaches every control
        page.press("Tab")
        seen.add(page.run("document.activeElement.id || document.activeElement.className"))
    assert {"model", "compare", "share", "show-keys", "theme", "max-tokens", "go", "file", "editor"} <= seen
    unnamed = page.run(
        "[...document.querySelectorAll('button, select, input, textarea')].filter((one) => !(one.textContent.trim() || "
        "one.ariaLabel || one.labels?.length)).map((one) => one.outerHTML)"
    )
    assert unnamed == []


def test_a_link_holds_the_text(page: browser.Browser, address: str) -> None:
    text = "Ёжик & <b>café</b> \t\n naïve 100 %"
    write(page, text)
    page.press("l", alt=True)
    page.until("location.hash.includes('z=')")
    link = page.run("location.href")
    page.open(link)
    page.until(SETTLED)
    assert page.run("editor.value") == text
    page.open(f"{address}#z=broken&m=none")
    page.until(SETTLED)
    assert page.run("editor.value.length") > 50, "a link that was cut off opens the page all the same"


def test_hostile_text_stays_text(page: browser.Browser) -> None:
    hostile = "</pre><img src=x onerror=alert(1)><script>alert(2)</script>\u202e\u0000\u200b\ufeff{{ 7*7 }}"
    write(page, hostile)
    assert page.run("document.querySelectorAll('img, .text script').length") == 0
    assert page.run("live.panes[0].picture.spans.map((span) => span.textContent).join('')") == hostile


def test_letters_that_run_leftwards_begin_at_their_right(page: browser.Browser) -> None:
    found = page.run("characters(coded.encode('aé\u05e9\u0645我')).map((one) => one.leftwards)")
    assert found == [False, False, True, True, False]


def test_the_editor_lies_on_the_picture(page: browser.Browser) -> None:
    """Letter on letter: both break lines alike, whatever the text and the width."""
    words = [
        "the",
        "of",
        "Representatives:",
        "\n",
        "\n\n",
        "\t",
        "end. ",
        "foo-bar/baz",
        "x" * 50,
        "\u00a0",
        "é",
        "“q”",
        "\u200b",
    ]
    draw = random.Random(3)
    height = (
        "new Promise(requestAnimationFrame).then(() => { const { style } = editor; style.height = style.minHeight = 0; "
        "const found = [editor.scrollHeight, live.panes[0].text.offsetHeight]; "
        "style.height = style.minHeight = ''; return found; })"
    )
    for width, _ in itertools.product((1280, 700, 390), range(3)):
        page.resize(width, 900)
        write(page, " ".join(draw.choices(words, k=130)))
        editor, picture = page.run(height)
        assert editor == picture, width


def test_a_phone(page: browser.Browser) -> None:
    page.resize(390, 844)
    write(page, "The people of the states " * 8 + "x" * 300)
    assert page.run("document.documentElement.scrollWidth") <= 390
    wide = page.run(
        "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > 391 && "
        "one.checkVisibility()).map((one) => one.outerHTML.slice(0, 80))"
    )
    assert wide == []
    small = page.run(
        "[...document.querySelectorAll('button:not(.candidate), select')].filter((one) => one.checkVisibility() && "
        "one.getBoundingClientRect().height < 40).map((one) => one.outerHTML)"
    )
    assert small == [], "a finger hits them"


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_as_dark_as_the_system(chromium: browser.Browser, address: str, dark: bool) -> None:
    chromium.open(address, dark=dark)
    chromium.until(SETTLED)
    ground = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(21, 23, 26)" if dark else "rgb(255, 255, 255)")
    chromium.run("$('theme').click()")
    assert chromium.run("getComputedStyle(document.body).backgroundColor") != ground


def test_the_page_of_an_analysis(
    chromium: browser.Browser, tiny_run: TinyRun, two_level_run: TinyRun, first: Served, tmp_path: Path
) -> None:
    content = "The people of the naïve café 的 \u00a0end".encode() + b"\xff\xc3 and more"
    (tmp_path / "a <b>.txt").write_bytes(content)
    made = tmp_path / "page.html"
    runs, options = (tiny_run.folder, two_level_run.folder), ("--html", made, "--data", tiny_run.data)
    good("analyze", *runs, "--file", tmp_path / "a <b>.txt", *options)
    chromium.open(made.as_uri())
    chromium.until("panes.length === 2")
    texts = chromium.run("panes.map((one) => one.picture.spans.map((span) => span.textContent))")
    assert texts[0] == texts[1] == [*content[:-11].decode(), "FF", "C3", *" and more"], "hex only for what is no UTF-8"
    chromium.run("panes[0].text.focus()")
    for _ in range(3):
        chromium.press("ArrowRight")
    assert chromium.run("document.getElementById('facts').textContent").startswith("e byte 3 of ")
    assert chromium.run("document.querySelectorAll('#facts .candidate').length") == 16
    assert chromium.run("panes.map((one) => one.picture.lanes.filter((lane) => lane.kind === 'level').length)") == [
        0,
        1,
    ]
    chromium.resize(390, 844)
    assert chromium.run("document.documentElement.scrollWidth") <= 390
    assert not chromium.errors
