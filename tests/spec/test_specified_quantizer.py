"""The package's quantiser against the specification: the same codes and the same scales, to the bit."""

from __future__ import annotations

import adapter
import numpy as np
import pytest
import specified_quantizer as spec
from numpy.typing import NDArray


def matrix(rows: int = 60, columns: int = 130) -> NDArray[np.float32]:
    """Rows of several scales and shapes: normal, heavy-tailed, tiny, constant, zero, with ties at half a step."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(rows, columns)) * np.exp2(random.integers(-12, 4, (rows, 1)))
    weight[13:] = random.standard_t(2, (rows - 13, columns))
    weight[8] = 0
    weight[9] = 0.25
    weight[10] *= 1e-8  # its scale is below fp16's normal numbers
    weight[11] = random.integers(-62, 63, columns) / 2
    weight[11, 0] = 31
    weight[12, 1:] = 0
    return weight.astype(np.float32)


@pytest.mark.parametrize("bits", [8, 6, 4, 3])
@pytest.mark.parametrize("prune", [0.0, 0.03])
def test_codes_and_scales_are_equal(bits: int, prune: float) -> None:
    weight = matrix()
    codes, scales = adapter.quantized(weight, bits, prune)
    for row, found, scale in zip(weight, codes, scales, strict=True):
        wanted, wanted_scale = spec.quantize_row(spec.prune_row(row, prune), bits)
        assert scale == wanted_scale
        assert found.tolist() == wanted


def test_the_rows_here_need_every_clip() -> None:
    chosen = set()
    for row in matrix():
        largest = float(np.abs(row).max())
        scales = {spec.fp16_at_least(clip * largest / top): clip for top in (3, 7) for clip in spec.CLIPS}
        chosen |= {scales[spec.quantize_row(row, bits)[1]] for bits in (3, 4)}
    assert chosen == set(spec.CLIPS)


def test_long_rows_are_clipped_at_the_percentile() -> None:
    """Above half a million elements the percentile of 8 bits leaves the maximum out."""
    weight = np.random.default_rng(0).normal(size=(1, 1_300_000)).astype(np.float32)
    codes, scales = adapter.quantized(weight, 8)
    clip = spec.percentile(np.abs(weight[0]), spec.CLIP_PERCENTILE)
    assert clip < np.abs(weight).max()
    assert scales[0] == spec.fp16_at_least(float(clip) / 127)
    assert codes[0, :1000].tolist() == spec.codes_at(weight[0, :1000], scales[0], 8)


def test_a_wrong_constant_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    row = matrix()[20]
    codes, scales = adapter.quantized(row[None], 4)
    assert spec.quantize_row(row, 4) == (codes[0].tolist(), scales[0])
    monkeypatch.setattr(spec, "CLIPS", (1.0,))  # S3's training: the row's maximum
    assert spec.quantize_row(row, 4) != (codes[0].tolist(), scales[0])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("network.blocks.0.mixer.qkv.weight", (512, 512)),
        ("network.blocks.0.mixer.qkv.weight", (256, 256)),
        ("network.blocks.0.mixer.qkv.weight", (256, 257)),
        ("network.blocks.0.mixer_scale", (512,)),
        ("network.blocks.0.resid_mix", (2, 65_536)),
        ("network.skip_weights", (4, 65_536)),
        ("embedding.weight", (1024, 512)),
    ],
)
def test_which_tensor_is_stored_how(name: str, shape: tuple[int, ...]) -> None:
    scheme, control = adapter.storage_scheme(name, shape)
    assert scheme == spec.scheme(shape, control)
    assert control == (len(shape) == 1 or name.endswith(("resid_mix", "skip_weights")))
