"""`bytegolf analyze`: its result, its page, its pictures, and that nothing a text holds becomes markup."""

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import SUBWORDS, TinyRun, good, refused, text

from bytegolf.analyze.packing import packed_shorts
from bytegolf.analyze.page import _json

HOSTILE = b"</script><script>alert(1)</script><!--<script> &amp; \xff\x00 \xe2\x80\xa8 '\"><img src=x onerror=alert(1)>"


class Parsed(HTMLParser):
    """The elements of a page in order, and the text of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.bodies: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in self.bodies else ""
        if self._inside:
            self.bodies[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.bodies[self._inside][-1] += data


def test_hostile_text_and_names_stay_text_and_nothing_is_loaded(tiny_run: TinyRun, tmp_path: Path) -> None:
    hostile, page = tmp_path / "<img src=x onerror=alert(2)>.txt", tmp_path / "page.html"
    hostile.write_bytes(HOSTILE * 3)
    ran = good("analyze", tiny_run.folder, "--file", hostile, "--html", page, "--data", tiny_run.data, "--json")
    assert ran.json["texts"] == [{"name": hostile.name, "bytes": len(HOSTILE) * 3}]
    shown = page.read_text()
    found = Parsed(shown)
    assert not {"link", "iframe", "object", "base", "svg"} & {tag for tag, _ in found.tags}
    assert [attrs.get("type") for tag, attrs in found.tags if tag == "script"] == ["application/json", None]
    for tag, attrs in found.tags:
        assert not {name for name in attrs if name.startswith("on") or name in ("href", "style")}
        source = attrs.get("src")
        assert source is None or (tag == "img" and source.startswith("data:image/svg+xml;base64,"))
    assert "alert(" not in shown.replace("alert(2)&gt;", "").replace("alert(2)\\u003e", "")
    assert "http" not in shown.replace("http-equiv", "")
    data = json.loads(found.bodies["script"][0])
    assert base64.b64decode(data["texts"][0]["models"][0]["data"]) == HOSTILE * 3
    assert data["texts"][0]["name"] == hostile.name
    # the policy runs the page's own script and no other
    policy = next(attrs["content"] for _, attrs in found.tags if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for kind, body in (("style", found.bodies["style"][0]), ("script", found.bodies["script"][1])):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_what_the_script_reads() -> None:
    value = {"a</script><!--": "]]>\u2028&"}
    assert not re.search("[<>&\u2028]", _json(value))
    assert json.loads(_json(value)) == value
    raw = base64.b64decode(packed_shorts(np.array([0, 1.4, np.nan, 1e9], np.float32)))
    assert np.frombuffer(raw, "<u2").tolist() == [0, 1, 65535, 65534]


def test_several_models_and_texts(
    tiny_run: TinyRun, two_level_run: TinyRun, subword_run: TinyRun, flat_run: TinyRun, tmp_path: Path
) -> None:
    english, chinese = tmp_path / "english.txt", tmp_path / "chinese.txt"
    english.write_text(text(1500))
    chinese.write_text("你好，世界。" * 40, encoding="utf-8")
    runs = (tiny_run, two_level_run, subword_run, flat_run)
    page = tmp_path / "page.html"
    options = ("--file", english, "--file", chinese, "--html", page, "--bpe", SUBWORDS)
    ran = good("analyze", *(run.folder for run in runs), "--data", tiny_run.data, *options, "--json")
    models = ran.json["models"]
    assert [len(model["levels"]) for model in models] == [1, 2, 1, 0]
    assert ran.json["bpe"] == SUBWORDS
    for model in models:
        assert [row["text"] for row in model["texts"]] == ["english.txt", "chinese.txt"]
        assert {row["script"] for row in model["scripts"]} >= {"Latin", "Han"}
        assert sum(row["bytes"] for row in model["scripts"]) == model["bytes"]
        for level in model["levels"]:
            assert set(level["bpe"]) >= {"precision", "recall", "f1", "random_f1"}
    subwords = models[2]["levels"][0]["bpe"]
    assert subwords["precision"] in (1, None)  # chunks over subwords start where a subword does
    assert "flat model" in ran.json["note"]
    data = json.loads(Parsed(page.read_text()).bodies["script"][0])
    assert [model["levels"] for model in data["models"]] == [1, 2, 1, 0]
    assert data["reference"] == SUBWORDS
    assert [len(model["levels"]) for model in data["texts"][1]["models"]] == [1, 2, 1, 0]


def test_over_training(tiny_run: TinyRun) -> None:
    ran = good("analyze", tiny_run.folder, "--history", "--limit", 3000, "--data", tiny_run.data, "--json")
    history = ran.json["models"][0]["history"]
    assert [point["what"] for point in history] == ["untrained", "step 10", "artifact"]
    assert [point["step"] for point in history] == [0, 10, 10]
    assert history[0]["bpb"] > history[1]["bpb"] > 0
    assert history[0]["chunks"] == tiny_run.ran.json["chunks_before"]
    assert history[-1]["chunks"] == tiny_run.ran.json["chunks_after"]
    assert f"{tiny_run.folder.name}, untrained, {len(history[0]['chunks'])} chunks:" in ran.err


def test_pictures_and_what_happens_without_matplotlib(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    here, page = ("--data", tiny_run.data, "--limit", 2000), tmp_path / "page.html"
    good("analyze", tiny_run.folder, *here, "--plots", tmp_path / "plots", "--html", page)
    drawn = sorted((tmp_path / "plots").iterdir())
    assert [path.stem for path in drawn] == ["lengths", "rate_by_surprisal", "surprisal_in_chunk", "words_cut"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    images = [attrs["src"] for tag, attrs in Parsed(page.read_text()).tags if tag == "img"]
    assert len(images) == len(drawn)
    assert b"<svg" in base64.b64decode((images[0] or "").partition(",")[2])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "[plots]" in refused("analyze", tiny_run.folder, *here, "--plots", tmp_path)
    good("analyze", tiny_run.folder, *here, "--html", page)
    assert "[plots]" in page.read_text(), "the page says what its curves need"


def test_wrong_inputs(tiny_run: TinyRun, subword_run: TinyRun, tmp_path: Path) -> None:
    assert "name a model" in refused("analyze")
    (tmp_path / "empty.txt").touch()
    assert "empty.txt is empty" in refused("analyze", tiny_run.folder, "--file", tmp_path / "empty.txt")
    assert "cannot read" in refused("analyze", tiny_run.folder, "--file", tmp_path / "none.txt")
    (tmp_path / "raw.bin").write_bytes(bytes(range(256)))
    assert "not UTF-8" in refused("analyze", subword_run.folder, "--file", tmp_path / "raw.bin")
    here = ("--data", tiny_run.data, "--limit", 2000)
    assert "byte260" in refused("analyze", tiny_run.folder, *here, "--bpe", "byte260")
    assert "--history" in refused("analyze", tiny_run.folder / "artifact.bgolf", *here, "--history")
