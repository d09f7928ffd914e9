"""What the plain reference keeps of the byte that it predicts next."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bytegolf.mixing.arithmetic import F


@dataclass
class Frame:
    """What the predictions of a byte are made of, and what they were: of each bit, or of each half."""

    hashes: list[int] = field(default_factory=list)
    trees: list[list[int]] = field(default_factory=list)
    buckets: list[list[int | None]] = field(default_factory=lambda: [[], []])
    x: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    sets: list[list[int]] = field(default_factory=lambda: [[]] * 8)
    out: list[list[np.float32]] = field(default_factory=lambda: [[]] * 8)
    p: list[np.float32] = field(default_factory=lambda: [F(0)] * 8)
    corrected: list[np.float32] = field(default_factory=lambda: [F(0)] * 8)
    final_set: list[int] = field(default_factory=lambda: [0] * 8)
    cells: list[list[tuple[int, int]]] = field(default_factory=lambda: [[]] * 8)
    alone_sets: list[list[int]] = field(default_factory=lambda: [[]] * 8)
    alone_out: list[list[np.float32]] = field(default_factory=lambda: [[]] * 8)
    shares: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * 8)
    history: dict[str, int] = field(default_factory=dict)
    order2: int = 0
    chance: int = 0
    expected: int = -1
    unsure: int = 0
