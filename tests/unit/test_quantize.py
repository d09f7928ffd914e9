"""The quantiser: what each scheme keeps, and what it refuses."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.artifact import quantize as module
from bytegolf.artifact.payload import ROW_BITS, levels
from bytegolf.artifact.quantize import (
    CLIP_PERCENTILE,
    CLIPS,
    TABLE_GROUP,
    QuantizedTensor,
    Storage,
    dequantize,
    dequantize_rows,
    fake_quantize,
    plan_of,
    pruned,
    quantize_rows,
    row_clip,
    steers,
    storage_of,
)
from bytegolf.config import ExportConfig, ModelConfig, NgramConfig, StackConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import declare, storage_kinds
from bytegolf.model.lm import outline

KINDS = storage_kinds(outline(ModelConfig(network=StackConfig(2, 16, 2, 1), ngrams=NgramConfig(longest=2))))

bit_widths = st.sampled_from(sorted(ROW_BITS.values()))


def quantize(name: str, weight: torch.Tensor, export: ExportConfig | None = None) -> QuantizedTensor:
    """As the export stores a weight of that name and size."""
    storage = storage_of(KINDS.get(name, "weight"), tuple(weight.shape), export or ExportConfig())
    return module.quantize(name, weight, storage)


floats = st.floats(min_value=-1e6, max_value=1e6, width=32)


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    size = rows * columns
    magnitude = draw(st.sampled_from([1e-9, 1e-5, 1e-2, 1.0]))
    values = draw(st.lists(floats, min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns) * magnitude


modest = matrices().map(lambda weight: weight / 10)
"""what 3 bits and fp16 scales can hold"""


@settings(deadline=None, derandomize=True)
@given(matrices())
def test_error_is_at_most_half_a_step_within_the_clip(weight: torch.Tensor) -> None:
    codes, scale = quantize_rows(weight, 8)
    assert codes.dtype == torch.int8
    assert scale.dtype == torch.float16
    assert int(codes.abs().max()) <= 127
    step = scale.double()[:, None]
    error = (codes.double() * step - weight.double()).abs()
    inside = weight.double().abs() <= 127 * step
    # the quotient is rounded once to fp32 before it is rounded to an integer
    assert bool((error[inside] <= (step / 2 * (1 + 1e-5)).expand_as(error)[inside]).all())
    # what is clipped lands on the last code, at or beyond the clip
    assert bool((codes.abs()[~inside] == 127).all())
    assert bool((127 * scale.double() >= row_clip(weight).double() * (1 - 1e-6)).all())


@settings(deadline=None, derandomize=True)
@given(matrices())
def test_clip_is_the_quantile(weight: torch.Tensor) -> None:
    expected = torch.quantile(weight.abs().double(), CLIP_PERCENTILE / 100, dim=1)
    torch.testing.assert_close(row_clip(weight).double(), expected, rtol=1e-6, atol=0)


def test_clip_of_a_row_so_long_that_the_percentile_leaves_the_maximum_out() -> None:
    weight = torch.arange(1_300_000, dtype=torch.float32)[None] / 1000
    expected = torch.quantile(weight.double(), CLIP_PERCENTILE / 100, dim=1)
    torch.testing.assert_close(row_clip(weight).double(), expected, rtol=1e-6, atol=0)
    codes, _ = quantize_rows(weight, 8)
    assert int(codes[0, -1]) == 127


def test_hand_made_row() -> None:
    codes, scale = quantize_rows(torch.tensor([[127.0, -64.0, 0.4, 0.6, 0.0], [0.0, 0.0, 0.0, -0.0, 0.0]]), 8)
    # the clip of 5 numbers lies a hair below 127, and fp16 rounds the scale up to 1
    assert scale.tolist() == [1.0, 0.0]
    assert codes.tolist() == [[127, -64, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_rows_below_fp16_do_not_vanish_into_a_zero_scale() -> None:
    codes, scale = quantize_rows(torch.full((1, 4), 1e-9), 8)
    assert scale.item() == 2.0**-24
    assert codes.tolist() == [[0, 0, 0, 0]]


def test_schemes_follow_size_and_name() -> None:
    big, small = torch.randn(257, 256), torch.randn(256, 256)
    assert quantize("network.blocks.0.mlp.fc.weight", big).quantizer == "int8_row"
    assert quantize("embedding.weight", small).quantizer == "fp16"
    assert quantize("network.blocks.0.resid_mix", torch.randn(2, 512)).quantizer == "fp32"
    assert quantize("network.skip_weights", torch.randn(0, 512)).quantizer == "fp32"
    assert quantize("network.blocks.0.mixer.q_gain", torch.randn(8)).quantizer == "fp32"
    assert quantize("pad", torch.randn(64)).quantizer == "fp32"
    assert quantize("temperature", torch.tensor(1.5)).quantizer == "fp32"
    assert steers("control", (4, 4))
    assert not steers("weight", (4, 4))


def test_what_a_module_declares_decides_and_no_name_does() -> None:
    """Whatever a tensor is called, however its model is copied."""
    inner = torch.nn.Module()
    inner.my_mix = torch.nn.Parameter(torch.zeros(300, 256))
    inner.decay = torch.nn.Parameter(torch.zeros(300, 256))
    declare(inner, "control", "decay")
    model = copy.deepcopy(torch.nn.Sequential(inner, torch.nn.Embedding(300, 256)))
    declare(model, "embedding", "1.weight")
    state = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert storage_kinds(model.to(torch.float16)) == {"0.decay": "control", "1.weight": "embedding"}
    plan = plan_of(model.state_dict(), storage_kinds(model), ExportConfig(bits=6, embedding_bits=7))
    assert plan == {"0.my_mix": Storage("int6_row"), "0.decay": Storage("fp32"), "1.weight": Storage("int7_row")}


@pytest.mark.parametrize("shape", [(257, 256), (3, 200, 150), (4, 5), (7,), (), (0, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shapes_and_dtypes_survive(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    stored = quantize("a.weight", weight)
    restored = dequantize(stored)
    assert restored.shape == weight.shape
    assert restored.dtype == torch.float32
    torch.testing.assert_close(restored, weight.float(), atol=0.03, rtol=1e-3)
    if stored.scale is not None:
        assert stored.scale.shape == shape[:1]


@settings(deadline=None, derandomize=True)
@given(matrices())
def test_fp16_error(weight: torch.Tensor) -> None:
    stored = quantize("a.weight", weight)
    error = (dequantize(stored) - weight).double().abs()
    if stored.quantizer == "fp16":
        assert bool((error <= weight.double().abs() * 2.0**-11 + 2.0**-25).all())
    else:  # beyond 65,504
        assert stored.quantizer == "fp32"
        assert not bool(error.any())


def test_the_original_is_neither_changed_nor_shared() -> None:
    weight = torch.ones(3)
    restored = dequantize(quantize("a", weight))
    restored += 1
    assert weight.tolist() == [1, 1, 1]


def test_views_and_gradients_are_fine() -> None:
    weight = torch.nn.Parameter(torch.randn(300, 257)).T
    assert dequantize(quantize("a.weight", weight)).shape == (257, 300)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", [(4,), (4, 4), (300, 300)])
def test_non_finite_weights_are_refused(bad: float, shape: tuple[int, ...]) -> None:
    weight = torch.zeros(shape)
    weight.view(-1)[-1] = bad
    with pytest.raises(BytegolfError, match=r"weight enc\.weight holds NaN or infinite"):
        quantize("enc.weight", weight)


def test_other_impossible_weights_are_refused() -> None:
    with pytest.raises(BytegolfError, match="only floating-point"):
        quantize("ids", torch.zeros(4, dtype=torch.int64))
    with pytest.raises(BytegolfError, match="training diverged"):
        quantize("a.weight", torch.full((300, 300), 1e9))
    with pytest.raises(BytegolfError, match="NaN or infinite"):
        quantize("a.weight", torch.full((4,), 1e300, dtype=torch.float64))


@settings(deadline=None, derandomize=True)
@given(modest, bit_widths)
def test_no_element_within_the_clip_is_off_by_more_than_half_a_step(weight: torch.Tensor, bits: int) -> None:
    codes, scale = quantize_rows(weight, bits)
    top = levels(bits)
    assert int(codes.abs().max()) <= top == {8: 127, 7: 63, 6: 31, 5: 15, 4: 7, 3: 3}[bits]
    step = scale.double()[:, None]
    error = (dequantize_rows(codes, scale).double() - weight.double()).abs()
    inside = weight.double().abs() <= top * step
    assert bool((error[inside] <= (step / 2 * (1 + 1e-5)).expand_as(error)[inside]).all())
    assert bool((codes.abs()[~inside] == top).all())


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_the_best_clip_of_the_list_is_taken(bits: int) -> None:
    weight = torch.randn(200, 256, generator=torch.Generator().manual_seed(0))
    error = (dequantize_rows(*quantize_rows(weight, bits)) - weight).square().sum(1)
    others = []
    for clip in CLIPS:
        step = clip * weight.abs().amax(1, keepdim=True) / levels(bits)
        codes = (weight / step).round().clamp(-levels(bits), levels(bits))
        others.append((codes * step - weight).square().sum(1))
    torch.testing.assert_close(error, torch.stack(others).amin(0), rtol=0.03, atol=0)  # ours are rounded to fp16
    assert len(torch.stack(others).argmin(0).unique()) >= 2, "different rows want different clips"


@settings(deadline=None, derandomize=True)
@given(modest, bit_widths, st.floats(1e-3, 1e3))
def test_a_row_is_quantised_by_itself_and_whatever_its_size(weight: torch.Tensor, bits: int, factor: float) -> None:
    codes, scale = quantize_rows(weight, bits)
    for row in range(len(weight)):
        alone = quantize_rows(weight[row : row + 1], bits)
        assert torch.equal(alone[0], codes[row : row + 1])
        assert torch.equal(alone[1], scale[row : row + 1])
    # no floor: the error of a small row is as small a part of it as that of a large one
    wide = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    whole, part = (dequantize_rows(*quantize_rows(wide * by, bits)) / by for by in (1.0, factor))
    torch.testing.assert_close((part - wide).norm(dim=1), (whole - wide).norm(dim=1), rtol=0.05, atol=0)


def test_rows_far_below_one_keep_their_shape() -> None:
    """S3's scale was at least 1/31, which made every weight below 1/62 zero."""
    small = torch.linspace(-0.01, 0.01, 65)[None]
    restored = dequantize_rows(*quantize_rows(small, 6))
    assert (restored - small).abs().max() <= 0.01 / 31 / 2 * 1.001


@pytest.mark.parametrize("bits", sorted(ROW_BITS.values()))
def test_fewer_bits_cost_more(bits: int) -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    error = (dequantize_rows(*quantize_rows(weight, bits)) - weight).square().mean().sqrt().item()
    assert 0.2 < error / (2 / levels(bits)) < 0.6


def test_quantising_what_was_quantised_changes_nothing() -> None:
    weight = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    for scheme in ROW_BITS:
        once = fake_quantize(weight, Storage(scheme))
        assert (fake_quantize(once, Storage(scheme)) - once).abs().max() < 0.02, scheme


@settings(deadline=None, derandomize=True)
@given(
    st.sampled_from([*ROW_BITS, "fp16", "fp32"]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([(8, 6), (4, 3, 5), (4, 1)]),
)
def test_training_and_the_export_have_one_quantiser(
    scheme: str, prune: float, group: int, shape: tuple[int, ...]
) -> None:
    weight = torch.randn(shape) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    storage = Storage(scheme, prune, group)
    stored = module.quantize("a", weight, storage)
    assert torch.equal(fake_quantize(weight, storage), dequantize(stored))
    if stored.scale is not None:
        assert len(stored.scale) == shape[0] // group


@settings(deadline=None, derandomize=True)
@given(matrices(), st.floats(0, 0.99))
def test_pruning_takes_the_smallest_of_each_row(weight: torch.Tensor, share: float) -> None:
    found, count = pruned(weight, share), int(share * weight.shape[1])
    for row, left in zip(weight, found, strict=True):
        gone = (left == 0) & (row != 0)
        assert int(gone.sum()) <= count
        assert torch.equal(left[~gone], row[~gone])
        if gone.any() and (left != 0).any():
            assert row[gone].abs().max() < left[left != 0].abs().min()
        if len(row.abs().unique()) == len(row):
            assert int((left == 0).sum()) >= count


def test_a_plan_follows_the_configuration() -> None:
    state = {
        "embedding.weight": torch.empty(260, 512, device="meta"),
        "ngrams.table": torch.empty(7 << 13, 16, device="meta"),
        "network.blocks.0.mlp.fc.weight": torch.empty(512, 256, device="meta"),
        "network.blocks.0.mlp_scale": torch.empty(512, device="meta"),
        "small.weight": torch.empty(16, 16, device="meta"),
    }
    assert set(plan_of(state, KINDS, ExportConfig()).values()) == {
        Storage("int8_row"),
        Storage("fp32"),
        Storage("fp16"),
    }
    found = plan_of(state, KINDS, ExportConfig(bits=6, embedding_bits=8, ngram_bits=4, prune=0.03))
    assert found["embedding.weight"] == Storage("int8_row", 0.03)
    assert found["ngrams.table"] == Storage("int4_row", group=TABLE_GROUP)
    assert found["network.blocks.0.mlp.fc.weight"] == Storage("int6_row", 0.03)
    assert found["small.weight"] == Storage("fp16")
    for size in (4, 200):  # tables of few rows
        assert (size * 7) % storage_of("table", (size * 7, 9999), ExportConfig(bits=5)).group == 0
