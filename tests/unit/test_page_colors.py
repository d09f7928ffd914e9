"""The page's colours, read from its style sheet: enough contrast, and told apart by the colour-blind."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest
from numpy.typing import NDArray

STYLE = (files("bytegolf") / "analyze" / "assets" / "page.css").read_text()
COLORS = {name: both for name, *both in re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", STYLE)}
"""Each of the light page's and of the dark one's."""

BLINDNESS = {
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no blue": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
"""What is left of linear RGB without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1)."""

TOLD_APART = (
    ("even", "odd"),  # chunks beside each other
    ("yes", "maybe"),  # a boundary's p, and p where none is
    ("one", "two"),  # outer chunks beside each other
    ("three", "four"),  # tokens beside each other
    ("low", "high"),  # surprisal
    ("ghost", "ring"),  # boundaries before an edit and since
    ("yes", "three"),  # bits per byte: the model's and others'
)


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear RGB in Ottosson's space, in which distances are about what is seen; 0.02 can just be told."""
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    opponents = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    found: NDArray[np.float64] = opponents @ np.cbrt(cones @ np.clip(rgb, 0, 1))
    return found


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_enough_for_everybody(dark: bool) -> None:
    """WCAG 2 AA: 4.5 for text, 3 for what else carries meaning; and colours that the colour-blind tell apart."""

    def linear(name: str) -> list[float]:
        parts = [part / 255 for part in bytes.fromhex(COLORS[name][dark][1:])]
        return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]

    def light(name: str) -> float:
        red, green, blue = linear(name)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, two: str) -> float:
        dim, bright = sorted((light(one), light(two)))
        return (bright + 0.05) / (dim + 0.05)

    assert light("ground") < 0.1 if dark else light("ground") > 0.9
    for ground in ("ground", "raised", "even", "odd", "plain"):
        assert contrast("ink", ground) >= 4.5, ground
    for ground in ("ground", "raised"):
        assert contrast("soft", ground) >= 4.5
        assert contrast("high", ground) >= 4.5, "errors are written in it"
        for thing in ("accent", "yes", "ring", "ghost", "one", "three"):
            assert contrast(thing, ground) >= 3, thing
    assert contrast("accent", "ground") >= 4.5
    for kind, seen in BLINDNESS.items():
        for one, two in TOLD_APART:
            apart = np.linalg.norm(oklab(seen @ linear(one)) - oklab(seen @ linear(two)))
            assert apart >= 0.06, f"{one} and {two}, {kind}: three just noticeable differences"
