"""The package against the specification, in fp64 and fp32: logits, boundaries, losses, steps; and tests of the tests.

Nothing from outside is needed. ``specification`` says what S0 to S3 are; these tests say that the package is that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import adapter
import numpy as np
import pytest
import specification as spec
import specified_hashes
import specified_transformer
import torch
from torch import Tensor

FIXED = ("S3", "two-levels-fixed")
"""A fixed capacity is shared by the documents of a sequence, so that they cannot be independent."""
NAMES = ("S0", "S0-local", "S1", "S1-wide", "S2", "S2-bucketed", "two-levels", "hashes", *FIXED)
CASES = [(name, reset) for name in NAMES for reset in (False, True) if not (reset and name in FIXED)]


def batch_of_ids() -> Tensor:
    """Two sequences of 22 + 1 ids with recurring n-grams; the first starts with BOS, both have it midway."""
    ids = torch.randint(2, 8, (2, 23), generator=torch.Generator().manual_seed(1))
    ids[:, 14:20] = ids[:, 3:9]
    ids[0, 0] = ids[0, 11] = ids[1, 5] = ids[1, 6] = specified_hashes.BOS
    return ids


def worst_difference(got: adapter.Result, model: spec.Model, batch: Tensor) -> float:
    """The largest difference in logits, p, b, losses and objective. Boundaries must be the same."""
    worst = 0.0
    for row, ids in enumerate(batch.tolist()):
        wanted = spec.run_model(model, ids[:-1])
        pairs = [(got.logits[row], wanted.logits), (got.losses[row], spec.cross_entropy(wanted.logits, ids[1:]))]
        pairs += [(found[row], b) for found, b in zip(got.soft, wanted.soft, strict=True)]
        assert len(got.p) == len(wanted.routings)
        for level, routing in enumerate(wanted.routings):
            length = len(routing.p)  # behind it an inner H-Net has padding
            assert min(abs(p - 0.5) for p in routing.p) > 1e-4, "rounding could decide a boundary: take another seed"
            if got.proposed[level][row, :length].tolist() != routing.proposed:
                return np.inf
            if got.boundary[level][row, :length].tolist() != routing.boundary:
                return np.inf
            assert not got.boundary[level][row, length:].any()
            pairs.append((got.p[level][row, :length], routing.p))
        worst = max(worst, *(float(np.abs(np.subtract(a, b)).max()) for a, b in pairs))  # type: ignore[call-overload]
    return max(worst, abs(got.objective.item() - spec.objective(model, batch.tolist())))


@pytest.mark.parametrize(("name", "reset"), CASES)
def test_the_package_computes_what_the_specification_says(name: str, reset: bool) -> None:
    model, batch = adapter.build(name, reset), batch_of_ids()
    weights = adapter.weights_of(model)
    assert (
        worst_difference(adapter.run(model, batch), adapter.specified(model, weights, exact_tables=False), batch) < 1e-9
    )

    single = adapter.build(name, reset, precision=torch.float32)
    weights = adapter.weights_of(single)
    assert worst_difference(adapter.run(single, batch), adapter.specified(single, weights), batch) < 1e-4


@pytest.mark.parametrize(("name", "reset"), [("S1", True), ("hashes", True), ("two-levels-fixed", False)])
def test_steps_give_the_same(name: str, reset: bool) -> None:
    model, batch = adapter.build(name, reset), batch_of_ids()
    specified = adapter.specified(model, adapter.weights_of(model), exact_tables=False)
    logits = adapter.step_logits(model, batch[:, :-1])
    # steps count positions from each document's start: other entries of the rotary tables, which are in fp32
    tolerance = 1e-5 if reset else 1e-9
    for row, ids in enumerate(batch.tolist()):
        np.testing.assert_allclose(logits[row], spec.run_model(specified, ids[:-1]).logits, rtol=0, atol=tolerance)


def test_the_models_here_use_what_they_are_to_show() -> None:
    """Chunks of several lengths, truncation at both levels, documents within sequences."""
    ids = batch_of_ids()[0, :-1].tolist()

    def result(name: str, reset: bool = False) -> spec.Result:
        model = adapter.build(name, reset)
        return spec.run_model(adapter.specified(model, adapter.weights_of(model)), ids)

    for name in ("S2", "hashes", "two-levels"):
        assert all(1 < sum(routing.boundary) < len(routing.boundary) for routing in result(name).routings), name
    for routing in result("two-levels-fixed").routings + result("S3").routings:
        assert sum(routing.boundary) < sum(routing.proposed)
    for routing in result("two-levels", reset=True).routings:
        assert routing.p.count(1.0) == 2


def test_chunk_keys_by_hand() -> None:
    """The chunks of 5 6 | 7 | 5 6 | 5 …: equal chunks have equal keys, and nothing ended before a document."""
    base = specified_hashes.HASH_BASE
    ids, boundary = [5, 6, 7, 5, 6, 5], [True, False, True, True, False, True]
    keys = specified_hashes.ended_chunks(ids, boundary, [True, False, False, False, False, False])
    assert [keys[t] for t in (0, 2, 3, 5)] == [0, 6 * base + 7, 8, 6 * base + 7]
    keys = specified_hashes.ended_chunks(ids, boundary, [True, False, False, True, False, False])
    assert [keys[t] for t in (0, 2, 3, 5)] == [0, 6 * base + 7, 0, 6 * base + 7]


def test_rotary_tables_are_the_formula_in_fp32() -> None:
    for position in (0, 1, 7, 1023):
        for width, base in ((4, 10_000.0), (64, 500.0)):
            got, wanted = (
                np.stack(table(position, width, base))
                for table in (adapter.rotary_table, specified_transformer.rotary_table)
            )
            # an angle of 1023 is off by up to 3e-5 in fp32
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 + position * 2.0**-22)


def test_smoothing_clamps_probabilities() -> None:
    random = np.random.default_rng(0)
    z, starts = random.normal(size=(150, 3)), random.random(150) < 0.1
    p = random.choice([0.0, 1e-6, 1e-4, 0.3, 0.5, 1 - 1e-6, 1.0], 150)
    starts[0] = True
    wanted = spec.smooth(list(z), p.tolist(), starts.tolist())
    np.testing.assert_allclose(adapter.smoothed(z, p, starts), wanted, rtol=0, atol=1e-12)


def test_a_tie_is_a_boundary() -> None:
    """Orthogonal vectors have p = ½; equal ones 0, opposite ones 1, and vectors of length 0 ½."""
    x = np.array([[1.0, 0], [0, 2], [0, 1], [0, -3], [0, 0], [1, 1]])
    p, boundary = adapter.routed(x)
    wanted = spec.route(np.eye(2), np.eye(2), list(x), [True] + [False] * 5)
    assert p.tolist() == wanted == [1, 0.5, 0, 1, 0.5, 0.5]
    assert boundary.tolist() == [value >= 0.5 for value in wanted] == [True, True, False, True, True, True]


# --- the tests can fail: each change to the specification must be noticed --------------------------------------------


def in_every_stack(model: spec.Model, change: Callable[[specified_transformer.Stack], Any]) -> spec.Model:
    def changed(network: Any) -> Any:
        if isinstance(network, specified_transformer.Stack):
            return change(network)
        parts = {part: changed(getattr(network, part)) for part in ("encoder", "main", "decoder")}
        return replace(network, **parts)

    return replace(model, network=changed(model.network))


def in_every_block(model: spec.Model, change: Callable[[specified_transformer.Block], Any]) -> spec.Model:
    return in_every_stack(model, lambda stack: replace(stack, blocks=[change(block) for block in stack.blocks]))


def in_hnet(model: spec.Model, **changes: Any) -> spec.Model:
    return replace(model, network=replace(model.network, **changes))


def swapped_router(model: spec.Model) -> spec.Model:
    assert isinstance(model.network, spec.HNet)
    return in_hnet(model, router_q=model.network.router_k, router_k=model.network.router_q)


WRONG: dict[str, tuple[str, Callable[[spec.Model], spec.Model]]] = {
    "softcap": ("S0", lambda m: replace(m, softcap=4.01)),
    "rotary base": ("S0", lambda m: in_every_stack(m, lambda s: replace(s, rope_base=9_990.0))),
    "no rotary": ("S0", lambda m: in_every_stack(m, lambda s: replace(s, rotary_table=lambda t, k, b: (1.0, 0.0)))),  # type: ignore[arg-type, return-value]
    "window": ("S0-local", lambda m: in_every_stack(m, lambda s: replace(s, window=s.window + 1))),
    "no skips": ("S0", lambda m: in_every_stack(m, lambda s: replace(s, skip_weights=0 * s.skip_weights))),
    "skips' order": ("S0", lambda m: in_every_stack(m, lambda s: replace(s, skip_weights=s.skip_weights[::-1]))),
    "no gain": ("S0", lambda m: in_every_block(m, lambda b: replace(b, q_gain=np.ones_like(b.q_gain)))),
    "mixes' order": ("S0", lambda m: in_every_block(m, lambda b: replace(b, mix=b.mix[::-1]))),
    "soft halves' order": ("S1", lambda m: replace(m, soft=[replace(s, w=np.roll(s.w, 16, 1)) for s in m.soft])),
    "input norm behind soft": ("S1", lambda m: in_every_stack(m, lambda s: replace(s, norms_input=True))),
    "regulariser": ("S1-wide", lambda m: replace(m, soft_regulariser=0.11)),
    "documents": ("S2", lambda m: replace(m, reset_at_bos=True)),
    "router's q and k swapped": ("S2", swapped_router),
    "ratio target": ("S2", lambda m: in_hnet(m, target=3.1)),
    "ratio weight": ("S2", lambda m: in_hnet(m, loss_weight=0.051)),
    "no residual": ("S2", lambda m: in_hnet(m, residual=np.zeros((16, 16)))),
    "no capacity": ("S3", lambda m: in_hnet(m, capacity_divisor=None)),
    "capacity": ("S3", lambda m: in_hnet(m, capacity_divisor=5)),
    "no chunk hash": ("hashes", lambda m: in_hnet(m, chunk_hash=None)),
    "no n-grams": ("hashes", lambda m: replace(m, ngrams=None)),
    "pad": ("two-levels", lambda m: in_hnet(m, pad=np.zeros(8))),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_changed_specification_fails(what: str) -> None:
    name, change = WRONG[what]
    model, batch = adapter.build(name), batch_of_ids()
    specified = adapter.specified(model, adapter.weights_of(model), exact_tables=False)
    assert worst_difference(adapter.run(model, batch), change(specified), batch) > 1e-5


CONSTANTS: list[tuple[str, Any, str, Any]] = [
    ("S2", specified_transformer, "NORM_EPS", 1e-5),
    ("S2", spec, "smooth", lambda z, p, starts: z),
    ("S2", spec, "straight_through", lambda c, sg: c),
    ("hashes", specified_hashes, "HASH_BASE", 1_000_005),
    ("hashes", specified_hashes, "HASH_MIXER", 11_400_714_819_323_198_487),
]


@pytest.mark.parametrize(("name", "module", "constant", "value"), CONSTANTS, ids=[case[2] for case in CONSTANTS])
def test_a_changed_constant_fails(
    name: str, module: Any, constant: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = adapter.build(name), batch_of_ids()
    specified = adapter.specified(model, adapter.weights_of(model), exact_tables=False)
    monkeypatch.setattr(module, constant, value)
    assert worst_difference(adapter.run(model, batch), specified, batch) > 1e-6
