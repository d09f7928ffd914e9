"""The learning rate: warm-up, plateau, decay, in steps and in time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytegolf.config import TrainConfig
from bytegolf.training.schedule import learning_rate, remaining


def settings(**fields: Any) -> TrainConfig:
    return TrainConfig(**{"seq_len": 8, "batch_tokens": 8, **fields})


def test_in_steps_by_hand() -> None:
    config = settings(max_steps=10, decay_fraction=0.4, lr_warmup_steps=2)
    rates = [learning_rate(config, step, 0.0) for step in range(11)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_in_time_by_hand() -> None:
    config = settings(max_seconds=100.0, decay_fraction=0.5)
    assert [learning_rate(config, 7, t) for t in (0.0, 50.0, 75.0, 90.0, 100.0, 130.0)] == pytest.approx(
        [1, 1, 0.5, 0.2, 0, 0]
    )


def test_decay_steps_under_a_clock_take_the_time_of_as_many_steps() -> None:
    """S0: 20 steps of decay at 2 s a step are 40 of the 100 s, whatever the fraction says."""
    config = settings(max_seconds=100.0, decay_steps=20, decay_fraction=0.9)
    assert learning_rate(config, 0, 0.0) == 1.0  # no pace is known yet
    assert learning_rate(config, 30, 60.0) == pytest.approx(1.0)
    assert learning_rate(config, 40, 80.0) == pytest.approx(0.5)
    slower = learning_rate(config, 20, 80.0)  # at 4 s a step, 20 steps are 80 s: 20 s of them are left
    assert slower == pytest.approx(0.25)


def test_decay_steps_under_a_step_budget() -> None:
    config = settings(max_steps=10, decay_steps=5, decay_fraction=0.0)
    assert [learning_rate(config, step, 9.0) for step in (4, 5, 6, 9)] == pytest.approx([1, 1, 0.8, 0.2])


def test_the_square_root_s_shape_and_a_warm_up_in_shares() -> None:
    """S4: 1 − √x of the decay's share x that is over; warm-up over the first fifth."""
    config = settings(max_steps=20, decay_fraction=0.2, decay_shape="sqrt", lr_warmup_fraction=0.2)
    rates = [learning_rate(config, step, 0.0) for step in range(21)]
    assert rates[:5] == pytest.approx([1e-3, 0.25, 0.5, 0.75, 1])
    assert rates[5:17] == pytest.approx([1] * 12)
    assert rates[17:] == pytest.approx([0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0])
    timed = settings(max_seconds=100.0, decay_fraction=0.2, decay_shape="sqrt", lr_warmup_fraction=0.1)
    assert [learning_rate(timed, 3, at) for at in (0.0, 5.0, 50.0, 85.0)] == pytest.approx([1e-3, 0.5, 1, 0.5])


def test_no_decay() -> None:
    config = settings(max_steps=10, decay_fraction=0.0)
    assert {learning_rate(config, step, 0.0) for step in range(10)} == {1.0}


def test_the_budget_that_ends_first_counts() -> None:
    config = settings(max_steps=10, max_seconds=100.0, decay_steps=5)
    assert remaining(config, 5, 10.0) == pytest.approx(0.5)
    assert remaining(config, 1, 80.0) == pytest.approx(0.2)
    assert remaining(config, 10, 1.0) == 0
    # half the steps are left, all of them decay: 1.0. In time, 5 steps at 10 s are 50 s, and 50 s are left: 1.0 too
    assert learning_rate(config, 5, 50.0) == pytest.approx(1.0)
    # by steps still 1.0; in time 5 steps at 16 s are 80 s, of which 20 s are left
    assert learning_rate(config, 5, 80.0) == pytest.approx(0.25)


budgets = st.fixed_dictionaries(
    {
        "max_steps": st.integers(0, 50),
        "max_seconds": st.one_of(st.just(0.0), st.floats(1.0, 100.0)),
        "decay_fraction": st.floats(0, 1),
        "decay_steps": st.integers(0, 60),
        "lr_warmup_steps": st.integers(0, 10),
    }
).filter(lambda fields: fields["max_steps"] or fields["max_seconds"])


@given(budgets, st.floats(0.1, 5.0))
def test_it_stays_in_range_is_positive_until_the_end_and_falls_after_the_warm_up(
    fields: dict[str, Any], pace: float
) -> None:
    config = settings(**fields)
    step, rates = 0, []
    while remaining(config, step, step * pace) > 0:
        rates.append(learning_rate(config, step, step * pace))
        step += 1
    assert all(0 < rate <= 1 for rate in rates)
    later = rates[max(1, config.lr_warmup_steps) :]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(later))
    if len(rates) > 1 and max(config.decay_fraction, config.decay_steps) == 0 and not config.lr_warmup_steps:
        assert set(rates) == {1.0}
