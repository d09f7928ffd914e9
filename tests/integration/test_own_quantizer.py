"""Quantisers from outside the package: exported, read back, scored, trained with, and told where they are missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import ModelMaker
from tiny_run import make_trainer, tiny_config, write_stream
from torch import Tensor

from bytegolf import BytegolfError, Config, register_quantizer
from bytegolf.artifact import quantize as quantizing
from bytegolf.artifact.container import CODERS
from bytegolf.artifact.export import export_weights
from bytegolf.artifact.gptq import output_error, solve
from bytegolf.artifact.loading import load_artifact
from bytegolf.artifact.pack import read_artifact, write_artifact
from bytegolf.artifact.quantize import Quantizer, Storage, quantize, quantizer
from bytegolf.config import ExportConfig
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.evaluate.score import score
from bytegolf.registry import QUANTIZERS
from bytegolf.tools.bundle.script import code_bytes, script
from bytegolf.training.weights import QuantizedTraining


@register_quantizer("ternary_rows")
class Ternary(Quantizer):
    """−1, 0 and 1 times the row's mean magnitude (BitNet b1.58)."""

    largest_code, bits = 1, 1.6

    def quantize(self, weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
        scale = weight.flatten(1).abs().mean(1).to(torch.float16)
        step = scale.float().view(-1, *[1] * (weight.ndim - 1)).clamp_min(1e-8)
        return (weight / step).round().clamp(-1, 1).to(torch.int8), scale

    def dequantize(self, data: Tensor, scale: Tensor | None) -> Tensor:
        assert scale is not None
        return data.float() * scale.float().view(-1, *[1] * (data.ndim - 1))


@register_quantizer("four_bit_columns")
class Columns(Quantizer):
    """4 bits with a scale per column, for which GPTQ can work."""

    largest_code, bits, gptq = 7, 4.0, True

    def quantize(self, weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
        flat = weight.flatten(1)
        scale = (flat.abs().amax(0) / 7).to(torch.float16)
        return self._codes(flat, scale).view(weight.shape), scale

    def dequantize(self, data: Tensor, scale: Tensor | None) -> Tensor:
        assert scale is not None
        return (data.flatten(1).float() * scale.float()).view(data.shape)

    def scales_fit(self, shape: tuple[int, ...], count: int) -> bool:
        return count * shape[0] == torch.Size(shape).numel()

    def round_column(self, values: Tensor, scale: Tensor, column: int) -> Tensor:
        return self._codes(values, scale[column : column + 1])

    def column_values(self, codes: Tensor, scale: Tensor, column: int) -> Tensor:
        return codes.float() * scale[column].float()

    def _codes(self, values: Tensor, scale: Tensor) -> Tensor:
        return (values / scale.float().clamp_min(1e-8)).round().clamp(-7, 7).to(torch.int8)


@pytest.fixture(autouse=True)
def codes_at_toy_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every tensor of a tiny model is small enough for fp16."""
    monkeypatch.setattr(quantizing, "SMALL_NUMEL", 64)


def config_of(name: str, **train: float) -> Config:
    config = tiny_config("one-level", max_steps=4, **train)  # type: ignore[arg-type]
    return dataclasses.replace(config, export=ExportConfig(quantizer=name, embedding_bits=0))


@pytest.mark.parametrize("name", ["ternary_rows", "four_bit_columns"])
def test_every_coder_holds_what_it_makes_and_training_computes_with_it(
    name: str, make_model: ModelMaker, tmp_path: Path
) -> None:
    model, config, path = make_model("one-level"), config_of(name), tmp_path / "model"
    with QuantizedTraining(model, config.export).applied():
        trained = {key: weight.clone() for key, weight in model.state_dict().items()}
    for coder in CODERS:
        write_artifact(path, model.state_dict(), config, ByteTokenizer().identity(), coder=coder)
        found = read_artifact(path).state
        assert all(torch.equal(found[key], weight) for key, weight in trained.items())
    assert found["embedding.weight"].unique().numel() < model.state_dict()["embedding.weight"].numel() / 4
    with QuantizedTraining(model, dataclasses.replace(config.export, quantizer="")).applied():
        assert not torch.equal(model.embedding.weight, found["embedding.weight"])


def test_a_run_is_trained_exported_loaded_and_scored(tmp_path: Path) -> None:
    config = config_of("ternary_rows", decay_fraction=1.0, qat_from=0.5)
    trainer = make_trainer(config, tmp_path, tmp_path / "run")
    trainer.fit()
    path = tmp_path / "run.bgolf"
    export_weights(path, config, ByteTokenizer(), trainer.export_state(), trainer.progress, torch.device("cpu"))
    loaded = load_artifact(read_artifact(path), path, device="cpu", precision="fp32")
    assert loaded.config.export.quantizer == "ternary_rows"
    assert loaded.model.state_dict()["network.encoder.blocks.0.mlp.fc.weight"][0].unique().numel() <= 3
    stream = write_stream(tmp_path / "other", "val", 2, seed=3)
    assert 2 < score(loaded.model, stream, loaded.tokenizer, 32).bpb < 12
    with pytest.raises(BytegolfError, match="quantizer 'ternary_rows' comes from a plugin"):
        script(config)
    assert code_bytes(config) > code_bytes(config_of("int8_row", decay_fraction=1.0, qat_from=0.5)) + 400


def test_gptq_works_for_one_that_rounds_by_column() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=rng) @ torch.randn(8, 32, generator=rng)
    weight, hessian, by = torch.randn(24, 32, generator=rng), x.mT @ x, quantizer("four_bit_columns")
    plain, scale = by.quantize(weight, Storage("four_bit_columns"))
    codes, solved = solve(weight, hessian, Storage("four_bit_columns"))
    assert scale is not None
    assert torch.equal(scale, solved)
    better, before = (output_error(by, weight, c, scale, hessian).sum() for c in (codes, plain))
    assert better < 0.5 * before


@pytest.fixture
def forgotten(tmp_path: Path, make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact, read where nothing has registered its quantiser."""
    path, model = tmp_path / "model", make_model("one-level")
    write_artifact(path, model.state_dict(), config_of("ternary_rows"), ByteTokenizer().identity())
    monkeypatch.delitem(QUANTIZERS._found, "ternary_rows")
    return path


def test_one_that_is_missing_is_named(forgotten: Path) -> None:
    with pytest.raises(
        BytegolfError, match=r"model stores embedding\.weight by the quantizer 'ternary_rows', which is not"
    ):
        read_artifact(forgotten)
    with pytest.raises(BytegolfError, match=r"quantizer is 'ternary_rows'.* 'int8_row'"):
        ExportConfig(quantizer="ternary_rows")


def test_one_that_breaks_its_word_is_told() -> None:
    class Careless(Ternary):
        def quantize(self, weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
            data, scale = super().quantize(weight, storage)
            return data, scale[:-1]

    register_quantizer("careless")(Careless)
    with pytest.raises(BytegolfError, match="careless makes of w"):
        quantize("w", torch.ones(4, 4), Storage("careless"))
    register_quantizer("no-quantizer")(dict)
    with pytest.raises(BytegolfError, match="no subclass"):
        quantize("w", torch.ones(4, 4), Storage("no-quantizer"))
