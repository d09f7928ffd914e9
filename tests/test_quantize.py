"""The quantiser: what each scheme keeps, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.artifact.quantize import CLIP_PERCENTILE, dequantize, int8_rows, is_control, quantize, row_clip
from bytegolf.errors import BytegolfError

floats = st.floats(min_value=-1e6, max_value=1e6, width=32)


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    size = rows * columns
    magnitude = draw(st.sampled_from([1e-9, 1e-5, 1e-2, 1.0]))
    values = draw(st.lists(floats, min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns) * magnitude


@settings(deadline=None, derandomize=True)
@given(matrices())
def test_error_is_at_most_half_a_step_within_the_clip(weight: torch.Tensor) -> None:
    codes, scale = int8_rows(weight)
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
    codes, _ = int8_rows(weight)
    assert int(codes[0, -1]) == 127


def test_hand_made_row() -> None:
    codes, scale = int8_rows(torch.tensor([[127.0, -64.0, 0.4, 0.6, 0.0], [0.0, 0.0, 0.0, -0.0, 0.0]]))
    # the clip of 5 numbers lies a hair below 127, and fp16 rounds the scale up to 1
    assert scale.tolist() == [1.0, 0.0]
    assert codes.tolist() == [[127, -64, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_rows_below_fp16_do_not_vanish_into_a_zero_scale() -> None:
    codes, scale = int8_rows(torch.full((1, 4), 1e-9))
    assert scale.item() == 2.0**-24
    assert codes.tolist() == [[0, 0, 0, 0]]


def test_schemes_follow_size_and_name() -> None:
    big, small = torch.randn(257, 256), torch.randn(256, 256)
    assert quantize("network.blocks.0.mlp.fc.weight", big).scheme == "int8_row"
    assert quantize("embedding.weight", small).scheme == "fp16"
    assert quantize("network.blocks.0.resid_mix", torch.randn(2, 512)).scheme == "fp32"
    assert quantize("network.skip_weights", torch.randn(0, 512)).scheme == "fp32"
    assert quantize("network.blocks.0.attn.q_gain", torch.randn(8)).scheme == "fp32"
    assert quantize("pad", torch.randn(64)).scheme == "fp32"
    assert quantize("temperature", torch.tensor(1.5)).scheme == "fp32"
    assert quantize("x.weight", big, control=lambda name, tensor: name.startswith("x")).scheme == "fp32"
    assert is_control("a.attn_scale", torch.randn(4, 4))
    assert not is_control("a.weight", torch.randn(4, 4))


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
    if stored.scheme == "fp16":
        assert bool((error <= weight.double().abs() * 2.0**-11 + 2.0**-25).all())
    else:  # beyond 65,504
        assert stored.scheme == "fp32"
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
