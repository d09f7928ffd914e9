"""What a fixed chunk capacity cost in the windows of a score, level by level."""

from __future__ import annotations

from typing import Any

from bytegolf.model.lm import LanguageModel
from bytegolf.model.trace import RouterTrace


class TruncationStats:
    """Counts windows and the boundaries in them that found no room."""

    def __init__(self, model: LanguageModel) -> None:
        """Count for ``model`` with the capacities that it has now."""
        self.windows = 0
        self._capacities = [level.capacity for level in model.levels()]
        self._boundaries = [0] * len(self._capacities)
        self._cut = [0] * len(self._capacities)

    @property
    def any_fixed(self) -> bool:
        """Whether anything could be truncated at all."""
        return any(capacity.mode == "fixed" for capacity in self._capacities)

    def add(self, traces: list[RouterTrace], row: int) -> None:
        """Take in the window that is ``row`` of a batch."""
        self.windows += 1
        for level, trace in enumerate(traces):
            lost = int(trace.truncated()[row])
            self._boundaries[level] += lost
            self._cut[level] += lost > 0

    def absorb(self, other: TruncationStats) -> None:
        """Take in what ``other`` counted in windows of its own, with the same capacities."""
        self.windows += other.windows
        for level, (lost, cut) in enumerate(zip(other._boundaries, other._cut, strict=True)):
            self._boundaries[level] += lost
            self._cut[level] += cut

    def to_dicts(self) -> list[dict[str, Any]]:
        """A level each: capacity, divisor (null unless fixed), windows, truncated_boundaries, truncated_windows."""
        return [
            {
                "capacity": capacity.mode,
                "divisor": capacity.divisor if capacity.mode == "fixed" else None,
                "windows": self.windows,
                "truncated_boundaries": boundaries,
                "truncated_windows": cut,
            }
            for capacity, boundaries, cut in zip(self._capacities, self._boundaries, self._cut, strict=True)
        ]
