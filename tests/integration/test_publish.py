"""push → load: the same score, hash and card, against a local server that speaks the hub's protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import TinyRun, good, refused
from local_hub import Handler, Hub

import bytegolf


def test_a_run_that_was_pushed_is_loaded_with_the_same_score_and_hash(
    tiny_run: TinyRun, local_hub: Hub, tmp_path: Path
) -> None:
    done = good("push", tiny_run.folder, "me/tiny", "--licence", "mit", "--json").json
    tree = local_hub.repositories["me/tiny"].commits[done["commit"]]
    assert set(done["files"]) == tree.keys() - {".gitattributes"}
    assert set(done["files"]) == {"artifact.bgolf", "model.safetensors", "config.toml", "summary.json", "README.md"}
    model = bytegolf.load("hf:me/tiny", precision="fp32")
    mine = bytegolf.load(tiny_run.folder, precision="fp32")
    assert model.origin == f"hf:me/tiny@{done['commit']}"
    assert model.sha256 == mine.sha256 == done["sha256"]
    score = good("eval", f"hf:me/tiny@{done['commit']}", "--data", tiny_run.data, "--json").json
    summary = json.loads((tiny_run.folder / "summary.json").read_text())
    assert score["bpb"] == summary["bpb"]
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(tree["model.safetensors"])
    plain = bytegolf.load(tmp_path / "weights", precision="fp32")
    assert plain.score("The people").nats == mine.score("The people").nats, "the safetensors are the artifact's weights"


def test_the_card_says_what_the_run_left(tiny_run: TinyRun, local_hub: Hub, tmp_path: Path) -> None:
    written = good("push", tiny_run.folder, "me/tiny", "--licence", "mit", "--card", tmp_path / "card.md", "--json")
    assert written.json == {"card": str(tmp_path / "card.md")}
    assert not local_hub.asked
    done = good("push", tiny_run.folder, "me/tiny", "--licence", "mit", "--json").json
    card = local_hub.repositories["me/tiny"].commits[done["commit"]]["README.md"].decode()
    assert card == (tmp_path / "card.md").read_text()
    summary = json.loads((tiny_run.folder / "summary.json").read_text())
    command = " ".join(json.loads((tiny_run.folder / "environment.json").read_text())["command"])
    model = bytegolf.load(tiny_run.folder)
    for said in (
        'license: "mit"', f"**{summary['bpb']:.4f} bits per byte**", "bytegolf eval hf:me/tiny --data DATA",
        summary["artifact_sha256"], command, f"{model.parameters:,} weights", "```\n[", "## Limits",
        f"| `artifact.bgolf` | {summary['artifact_bytes']:,} |", "documents", "first:10",
    ):  # fmt: skip
        assert said in card, said


def test_a_push_that_was_interrupted_goes_on(
    tiny_run: TinyRun, local_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_upload_fails(handler: Handler) -> bool:
        puts = [asked for asked in handler.hub.asked if asked.startswith("PUT")]
        if handler.command == "PUT" and len(puts) > 1:
            handler.send_error(503)
            return True
        return False

    local_hub.faults = [second_upload_fails]
    assert "run the same command again" in refused("push", tiny_run.folder, "me/tiny")
    assert (
        "artifact.bgolf"
        not in local_hub.repositories["me/tiny"].commits[local_hub.repositories["me/tiny"].refs["main"]]
    )
    kept = set(local_hub.objects)
    assert kept
    local_hub.faults.clear()
    local_hub.asked.clear()
    done = good("push", tiny_run.folder, "me/tiny", "--json").json
    assert not {asked.rpartition("/")[2] for asked in local_hub.asked if asked.startswith("PUT")} & kept
    assert bytegolf.load("hf:me/tiny").sha256 == done["sha256"]


def test_other_models_are_pushed_too(two_level_run: TinyRun, local_hub: Hub, tmp_path: Path) -> None:
    path = bytegolf.load(two_level_run.folder).save(tmp_path / "kept.safetensors")
    done = good("push", path, "me/kept", "--json").json
    assert set(done["files"]) == {"model.safetensors", "config.toml", "README.md"}
    card = local_hub.repositories["me/kept"].commits[done["commit"]]["README.md"].decode()
    assert "No score is recorded" in card
    assert "is not recorded" in card
    assert bytegolf.load("hf:me/kept").sha256 == done["sha256"]
    assert "write owner/name" in refused("push", path, "kept")
    assert "no licence's name" in refused("push", path, "me/kept", "--licence", "a b")
    assert "someone else's model" in refused("push", "hf:me/kept", "me/again")
