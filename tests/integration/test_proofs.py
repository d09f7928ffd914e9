"""Proofs of a score: green on honest models of every kind; each planted cheat is caught by each check that should."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import SUBWORDS, TinyRun, cli, good, refused, small
from conftest import scatter, shapes_unchecked
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bytegolf.artifact import loading as opening
from bytegolf.artifact import pack
from bytegolf.artifact.export import training_text
from bytegolf.artifact.loading import LoadedModel
from bytegolf.artifact.pack import write_artifact
from bytegolf.bpb import Score
from bytegolf.config import Config, preset_chain, preset_names
from bytegolf.data.dataset import open_split
from bytegolf.data.tokenizer import ByteTokenizer, load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate import modes, verification
from bytegolf.evaluate import score as bpb
from bytegolf.evaluate.modes import ScoringMode
from bytegolf.evaluate.results import Check
from bytegolf.evaluate.score import Window, windows
from bytegolf.evaluate.verification import Trial
from bytegolf.infer.native_step import ExactModel
from bytegolf.mixing.primer import Primer
from bytegolf.model.lm import Forward, LanguageModel
from bytegolf.tools.bundle.ledger import measure

QUICK, LITTLE = verification.QUICK, verification.Effort(cuts=1, places=2, streams=24, tokens=1024)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without checks of shapes, with little effort; test-time training is tried where a test asks for it."""
    monkeypatch.setattr(verification, "LEARNING", ())
    monkeypatch.setattr(verification, "QUICK", LITTLE)
    with shapes_unchecked():
        yield


@pytest.fixture
def opened(tiny_run: TinyRun) -> LoadedModel:
    return opening.load_own(tiny_run.folder, precision="fp32")


def failed(opened: LoadedModel, data: Path) -> set[str]:
    """The kinds of checks that fail."""
    made = list(verification.verify(opened, data, LITTLE, fresh=False))
    return {check.name.partition(":")[0] for check in made if not check.passed}


def disguised(opened: LoadedModel, cheat: type[LanguageModel]) -> LoadedModel:
    """The same weights in a model that cheats."""
    model = copy.deepcopy(opened.model)
    model.__class__ = cheat
    return dataclasses.replace(opened, model=model)


# -------------------------------------------------------------------------------------------------------- honest


@pytest.mark.parametrize("preset", [name for name in preset_names() if len(preset_chain(name)) == 1])
def test_every_preset_is_proved(preset: str, tiny_data: Path, tmp_path: Path) -> None:
    """Shrunken and untrained, away from the special values at which parameters start."""
    changes = small(preset, seq_len=32)
    if Config.load(preset).eval.stride:
        changes.append("eval.stride=8")
    byte = Config.load(preset).data.tokenizer == "byte260"
    if not byte:
        changes += [f"data.tokenizer={SUBWORDS}", f"model.vocab_size={SUBWORDS[2:]}"]
    config = Config.load(preset, changes)
    model = LanguageModel(config.model)
    scatter(model)
    with torch.no_grad():
        model.embedding.weight.mul_(0.2)
    tokenizer = ByteTokenizer() if byte else load_tokenizer(SUBWORDS, tiny_data)
    write_artifact(tmp_path / "a.bgolf", model.state_dict(), config, tokenizer.identity())
    opened = opening.load_own(tmp_path / "a.bgolf", tiny_data, precision="fp32")
    made = list(verification.verify(opened, tiny_data, LITTLE, fresh=False))
    assert all(check.passed for check in made), [check for check in made if not check.passed]
    kinds = [check.name.partition(":")[0] for check in made]
    mixed = 3 if byte else 0  # without overlap, with, and in one pass
    assert kinds.count("causal") == (8 if opened.model.levels() else 3) + mixed
    expected = {"causal", "normalised", "counted once", "frequencies", "coded size", "decoded"}
    assert set(kinds) == expected | ({"normalised, mixed", "coded size, mixed"} if byte else set())


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_primer_must_be_of_the_training_split_and_what_is_configured_is_proved(
    split: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    run = pack.read_artifact(tiny_run.folder / "artifact.bgolf")
    changes = ["eval.mix=true", "eval.mix.megabytes=1", "eval.mix.reset=document", "export.primer=3000"]
    if split == "train":  # what a configuration has learned at test time is in every figure, or they differ
        changes += ["eval.ttt.mode=sgd", "eval.ttt.sgd_lr=0.01"]
    config = run.config.with_(*changes)
    stream = open_split(tiny_run.data, "pure_byte_260", split, 260)
    primer = Primer.of(training_text(stream, ByteTokenizer(), 3000))
    path = tmp_path / "a.bgolf"
    write_artifact(path, run.state, config, run.tokenizer, run.info, primer=primer)
    opened = opening.load_own(path, precision="fp32")
    made: dict[str, Check] = {}
    for check in verification.verify(opened, tiny_run.data, LITTLE):
        name, _, mode = check.name.partition(": ")
        made["as configured" if mode == "as configured" else name] = check
        if split == "val" and "primer" in made:  # all else is as with the other one
            break
    assert made.pop("primer").passed == (split == "train")
    assert all(check.passed for check in made.values()), made
    if split == "train":
        assert {"normalised, mixed", "coded size, mixed", "recomputed", "as configured"} < set(made)
    rows = {row.group: row for row in measure(path).rows}
    assert (rows["primer"].raw_bytes, rows["primer"].packed_bytes) == (3000, len(primer.packed))
    damaged = bytearray(path.read_bytes())
    damaged[-40] ^= 1
    body = bytes(damaged[:-32])
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(BytegolfError, match="primer"):
        pack.read_artifact(path)


def test_the_future_is_not_learned_from(
    tiny_run: TinyRun, opened: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "LEARNING", ("lora", "sgd"))
    tokens = np.random.default_rng(0).integers(4, 260, 65)
    adapting = [trial for trial in verification.trials(opened.model, 32) if trial.mode.adapts]
    assert len(adapting) == 2
    for trial in adapting:
        check = verification.causality(opened.model, opened.tokenizer, tokens, trial, 0)
        assert check.passed, check


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_verb_proves_a_run_and_a_claim(precision: str, tiny_run: TinyRun, request: pytest.FixtureRequest) -> None:
    if precision == "bf16":
        request.getfixturevalue("proved_quickly")
    bpb = good("eval", tiny_run.folder, "--precision", precision, "--json").json["bpb"]
    if precision == "fp32":
        ran = good("verify", tiny_run.folder, "--claim", bpb, "--precision", precision, "--json")
        assert ran.json["passed"] is True
        assert [check["name"] for check in ran.json["checks"]][-2:] == ["recomputed", "as claimed"]
        assert ran.err.count("pass  ") == len(ran.json["checks"])
        return
    ran = cli("verify", tiny_run.folder, "--claim", bpb - 0.01, "--precision", precision, "--json")
    assert ran.code == 1
    assert [check["name"] for check in ran.json["checks"] if not check["passed"]] == ["as claimed"]
    assert "FAIL  as claimed" in ran.err


def test_what_cannot_be_proved_is_said(tiny_run: TinyRun, tmp_path: Path) -> None:
    assert "no such file" in refused("verify", tmp_path / "nothing")
    assert "bytegolf prepare" in refused("verify", tiny_run.folder, "--data", tmp_path / "nowhere")


# --------------------------------------------------------------------------------------------------------- cheats


class Peeking(LanguageModel):
    """Knows the next token wherever it is in the window."""

    def forward(self, ids: Tensor) -> Forward:
        out = super().forward(ids)
        hint = torch.nn.functional.one_hot(ids[:, 1:], self.config.vocab_size)
        out.logits[:, :-1] += 5 * hint.to(out.logits.dtype)
        return out


class PeekingEmbedding(LanguageModel):
    """Its network sees a little of the next token, in every mode of scoring."""

    def embed_traced(self, ids: Tensor) -> Any:
        x, soft = super().embed_traced(ids)
        return x + 0.1 * torch.cat((x[:, 1:], x[:, :1]), 1), soft


class MergingPairs(LanguageModel):
    """Reads two tokens as one, so that the first of a pair knows the second."""

    def forward(self, ids: Tensor) -> Forward:
        out = super().forward(ids)
        hint = torch.nn.functional.one_hot(ids[:, 1::2], self.config.vocab_size)
        out.logits[:, : 2 * hint.shape[1] : 2] += 5 * hint.to(out.logits.dtype)
        return out


class MergingPairsEmbedding(LanguageModel):
    """The mean of each pair stands for both of its tokens."""

    def embed_traced(self, ids: Tensor) -> Any:
        x, soft = super().embed_traced(ids)
        even = x.shape[1] // 2 * 2
        pairs = x[:, :even].unflatten(1, (-1, 2)).mean(2).repeat_interleave(2, 1)
        return torch.cat((pairs, x[:, even:]), 1), soft


class Unnormalised(LanguageModel):
    """A mixture whose weights sum to 1.1."""

    def losses(self, out: Forward, targets: Tensor) -> Tensor:
        return super().losses(out, targets) - np.log(1.1)  # type: ignore[no-any-return]


class Doubling(ByteTokenizer):
    """Counts spaces twice."""

    def byte_counts(self, targets: ArrayLike, previous: ArrayLike) -> NDArray[np.int64]:
        return super().byte_counts(targets, previous) + (np.asarray(targets) == 36)  # type: ignore[no-any-return]


def test_the_honest_original_passes(opened: LoadedModel, tiny_run: TinyRun) -> None:
    assert failed(opened, tiny_run.data) == set()


@pytest.mark.parametrize("cheat", [Peeking, MergingPairs])
def test_what_sees_ahead_fails_by_experiment_and_cannot_be_coded(
    cheat: type[LanguageModel], opened: LoadedModel, tiny_run: TinyRun
) -> None:
    assert failed(disguised(opened, cheat), tiny_run.data) == {"causal", "coded size"}


@pytest.mark.parametrize("cheat", [PeekingEmbedding, MergingPairsEmbedding])
def test_what_sees_ahead_in_its_network_fails_in_every_mode(cheat: type[LanguageModel], opened: LoadedModel) -> None:
    cheating = disguised(opened, cheat)
    tokens = np.random.default_rng(0).integers(4, 260, 65)
    for trial in verification.trials(cheating.model, 32):
        assert not verification.causality(cheating.model, cheating.tokenizer, tokens, trial, 0).passed, trial.name


def test_learning_before_the_score_fails(opened: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test-time training that learns from a window's own targets before it scores them."""
    inner = bpb.score

    def too_soon(model: LanguageModel, stream: Any, *arguments: Any, **settings: Any) -> Score:
        before = model.embedding.weight.detach().clone()
        ids = torch.from_numpy(stream.slice(0, len(stream)).astype(np.int64))
        with torch.no_grad():
            model.embedding.weight += 1e-3 * torch.bincount(ids, minlength=260).unsqueeze(1)
        try:
            return inner(model, stream, *arguments, **settings)
        finally:
            with torch.no_grad():
                model.embedding.weight.copy_(before)

    monkeypatch.setattr(modes, "score", too_soon)
    tokens = np.random.default_rng(0).integers(4, 260, 65)
    check = verification.causality(opened.model, opened.tokenizer, tokens, Trial("plain", ScoringMode(32, batch=1)), 2)
    assert not check.passed
    assert "replaced" in check.evidence or "deleted" in check.evidence


def test_a_model_that_reads_nothing_proves_nothing(opened: LoadedModel) -> None:
    class Blind(LanguageModel):
        def forward(self, ids: Tensor) -> Forward:
            return super().forward(torch.ones_like(ids))

    cheating = disguised(opened, Blind)
    tokens = np.random.default_rng(0).integers(4, 260, 65)
    check = verification.causality(
        cheating.model, cheating.tokenizer, tokens, Trial("plain", ScoringMode(32, batch=1)), 2
    )
    assert not check.passed
    assert "changed anything" in check.evidence


def test_a_mixture_that_sums_to_more_than_one_fails(opened: LoadedModel, tiny_run: TinyRun) -> None:
    assert failed(disguised(opened, Unnormalised), tiny_run.data) == {"normalised", "coded size"}


def test_bytes_counted_twice_fail(opened: LoadedModel, tiny_run: TinyRun) -> None:
    cheating = dataclasses.replace(opened, tokenizer=Doubling())
    assert failed(cheating, tiny_run.data) == {"counted once"}


@pytest.mark.parametrize("cheat", ["skips", "repeats"])
def test_windows_that_choose_their_targets_fail(
    cheat: str, opened: LoadedModel, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = windows

    def chosen(*arguments: Any) -> Iterator[Window]:
        plan = list(inner(*arguments))
        return iter([plan[0], *plan[2:]] if cheat == "skips" and len(plan) > 4 else [plan[0], *plan])

    with monkeypatch.context() as patch:
        patch.setattr(bpb, "windows", chosen)
        stream = open_split(tiny_run.data, "byte260", "val", 260)
        counting = verification.Counting(stream, opened.tokenizer)
        total = bpb.score(opened.model, stream, opened.tokenizer, 128, limit=1024, observe=counting.observe)
    check = counting.check(total, None)
    assert not check.passed
    assert ("left out" if cheat == "skips" else "more than once") in check.evidence


def test_a_split_that_is_not_the_documents_fails(opened: LoadedModel, tiny_run: TinyRun) -> None:
    stream = open_split(tiny_run.data, "byte260", "val", 260)
    counting = verification.Counting(stream, opened.tokenizer)
    total = bpb.score(opened.model, stream, opened.tokenizer, 128, limit=256, observe=counting.observe)
    assert counting.check(total, None).passed
    assert "its documents have 9" in counting.check(total, 9).evidence


def test_weights_that_are_not_the_artifacts_fail(opened: LoadedModel, tiny_run: TinyRun) -> None:
    """What was scored here is not what is shipped."""
    other = disguised(opened, LanguageModel)
    with torch.no_grad():
        other.model.embedding.weight.mul_(1.5)
    stream = open_split(tiny_run.data, "byte260", "val", 260)
    total = bpb.score(other.model, stream, other.tokenizer, 128, limit=256, drop_tail=True)
    check = verification._recomputed(other, tiny_run.data, total, 256)
    assert isinstance(check, Check)
    assert not check.passed
    assert "from the artifact alone" in check.evidence


def test_what_does_not_decode_fails(opened: LoadedModel, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose steps are not the same twice."""
    calls = iter(range(1 << 30))
    for stepping in (ExactModel, LanguageModel):  # where kernels are, and where not

        def extend(self: Any, *arguments: Any, inner: Any = stepping.extend) -> Tensor:
            found: Tensor = inner(self, *arguments)
            return found + 0.01 * (next(calls) % 7) * torch.arange(found.shape[-1])

        monkeypatch.setattr(stepping, "extend", extend)
    assert "decoded" in failed(opened, tiny_run.data)


def test_a_split_shorter_than_a_window_is_said(opened: LoadedModel, tiny_run: TinyRun) -> None:
    train = dataclasses.replace(opened.config.train, seq_len=1 << 20, batch_tokens=1 << 20)
    longer = dataclasses.replace(opened.config, train=train)
    with pytest.raises(BytegolfError, match="fewer than one sequence"):
        next(verification.verify(dataclasses.replace(opened, config=longer), tiny_run.data))


def test_a_quick_proof_scores_less_where_windows_overlap() -> None:
    # 1,024 tokens are worked out for 32 new ones: 65,536 targets would take 2 million
    assert QUICK.limit(1024, 0) == QUICK.tokens == QUICK.limit(1024, 512)
    assert QUICK.limit(1024, 32) == QUICK.tokens // 4
    assert verification.THOROUGH.limit(1024, 32) == 0
