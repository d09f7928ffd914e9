"""`prepare` on a Ray cluster, which here is two workers of this machine; skipped where Ray is not installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpora import TEXTS, files_of, lines

from bytegolf.data import blocks
from bytegolf.data.prepare import prepare
from bytegolf.errors import BytegolfError

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2000)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_files_are_those_of_one_process(tmp_path: Path, compressed: bool) -> None:
    source = lines(tmp_path / "docs.jsonl", TEXTS)
    if compressed:  # read here, and sent
        import zstandard

        source += ".zst"
        Path(source).write_bytes(zstandard.compress((tmp_path / "docs.jsonl").read_bytes()))
    for name, on_ray in (("one", False), ("ray", True)):
        out = tmp_path / name
        prepare([source], out, "byte260,sp300", "first:9", shard_tokens=1000, workers=1, ray=on_ray, quiet=True)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "ray")


def test_an_error_far_away_is_one_sentence_here(tmp_path: Path) -> None:
    source = Path(lines(tmp_path / "docs.jsonl", TEXTS))
    broken = source.read_text().splitlines()
    broken[60] = json.dumps({"title": "no text"})
    source.write_text("\n".join(broken))
    with pytest.raises(BytegolfError) as caught:
        prepare([str(source)], tmp_path / "d", val="first:9", ray=True, quiet=True)
    assert str(caught.value) == f"{source}, line 61 has no text under 'text': name the right field with --field"
