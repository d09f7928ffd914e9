"""Whether what is learned from validation tokens had been scored before, on every path so far: places and verdicts.

``flow`` has a worked example. What is around a place (loops, and branches of an ``if``) is a tuple of labels such as
``for script:12``, outermost first; a value that depends on a loop's variable carries its label.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from bytegolf.tools.submission.values import SCORE, VALIDATION, Scope, Value

NEVER, SOMETIMES, ALWAYS = range(3)


@dataclass(frozen=True)
class Sink:
    """A place where something is learned from validation tokens."""

    kind: str
    """gradient, calibration or file"""
    file: str
    line: int
    way: tuple[str, ...]
    """the functions on the way there"""
    verdict: str
    """allowed, unsure or broken"""
    why: str


@dataclass
class State:
    """What holds at a place of the interpretation."""

    booked: dict[str, int] = field(default_factory=dict)
    """by loop: whether a score was booked in its present iteration; "" is the whole run"""
    learned: tuple[str, ...] | None = None
    """the loops and branches around the last update on validation tokens"""

    def copy(self) -> State:
        """An independent one."""
        return State(dict(self.booked), self.learned)

    def join(self, other: State) -> None:
        """What holds after either of two paths."""
        for loop in {*self.booked, *other.booked}:
            if self.booked.get(loop, NEVER) != other.booked.get(loop, NEVER):
                self.booked[loop] = SOMETIMES
        self.learned = self.learned or other.learned

    def key(self) -> object:
        """What tells two states apart."""
        return frozenset(self.booked.items()), self.learned


@dataclass
class Frame:
    """A call: where it is, and what it has returned so far."""

    file: str
    way: tuple[str, ...]
    returned: list[Value] = field(default_factory=list)


class Ends(Exception):  # noqa: N818  (no error)
    """The path ends here: return, raise, continue, break."""


class Learning:
    """Where an interpretation is, what was booked on the way there, and what was learned."""

    def __init__(self) -> None:
        self.sinks: dict[tuple[str, int], Sink] = {}
        self.rescored: set[tuple[str, int]] = set()
        self._scope = Scope()
        self._frame, self._state = Frame("", ()), State()
        self._around: tuple[str, ...] = ()
        self._events = 0
        """how often something was booked or learned"""

    def _counters(self) -> frozenset[str]:
        """Labels of what is counted up: in a `while` it may say how far the text is, as a `for`'s variable does."""
        return frozenset(one for one in self._around if one.startswith("while"))

    def _books(self, value: Value, line: int) -> None:
        """Note a score that is added up or stored (not what a model keeps for itself)."""
        if {VALIDATION, SCORE} <= value.labels and "forward" not in " ".join(self._frame.way):
            if self._state.learned is not None and not _loops(self._state.learned, self._around):
                self.rescored.add((self._frame.file, line))
            self._events += 1
            self._state.booked |= dict.fromkeys(("", *_loops(self._around, self._around)), ALWAYS)

    def _learns(self, call: ast.Call, value: Value) -> None:
        """Judge a gradient of ``value``: see the module's example."""
        if VALIDATION not in value.labels:
            return
        booked, loops = self._state.booked, _loops(self._around, self._around)
        # The loops that hand out what is learned and in which a score was booked in the present turn: of `for chunk in
        # chunks` these are the tokens of this chunk. Loops around them that hand out nothing go over them once more.
        scored = [loop for loop in loops if loop in value.labels and booked.get(loop)]
        if scored:
            level = max(booked[loop] for loop in scored)
            inner = next(loop for loop in reversed(scored) if booked[loop] == level)
            again = [loop for loop in loops[: loops.index(inner)] if loop not in value.labels]
            conditional = again and any(one.startswith("if") for one in self._around[self._around.index(again[0]) :])
            if again:
                sure = level == ALWAYS and not conditional and again[0].startswith("for")
                verdict, why = (
                    "broken" if sure else "unsure",
                    f"the loop at {again[0].partition(' ')[2]} goes over scored tokens again",
                )
            elif level == SOMETIMES:
                verdict, why = "unsure", "a score is booked before on some paths only"
            else:
                verdict, why = "allowed", "a score is booked before on every path"
        elif any(booked.get(loop) == ALWAYS for loop in loops):
            verdict, why = "unsure", "scores are booked before, perhaps of other tokens"
        elif booked and any(one.startswith("if") for one in self._around):
            verdict, why = "unsure", "under a condition, and the scores booked before are of another pass"
        else:
            verdict, why = "broken", "no score of them is booked before"
        self._sink("gradient", call, verdict, why)
        self._state.learned = self._around

    def _sink(self, kind: str, call: ast.Call, verdict: str, why: str) -> None:
        self._events += 1
        order = ("allowed", "unsure", "broken")
        key = (self._frame.file, call.lineno)
        old = self.sinks.get(key)
        if old is None or order.index(old.verdict) < order.index(verdict):
            self.sinks[key] = Sink(kind, *key, self._frame.way, verdict, why)


def _loops(a: tuple[str, ...], b: tuple[str, ...]) -> list[str]:
    """The loops that are around both of two places, outermost first."""
    return [one for one in a if not one.startswith("if") and one in b]
