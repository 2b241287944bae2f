"""The oracle tests of the reference are themselves tested: a bug planted in rounding, saturation or zero point makes one fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_reference as oracle

from gatewright.frontend import reference, rounding

ORACLES: list[Callable[[], None]] = [
    lambda: oracle.test_conv_against_fractions(-7, 9),
    oracle.test_ties_go_to_even_on_a_power_of_two_grid,
    oracle.test_saturations_count_the_grid_not_the_relu,
    oracle.test_sum_has_one_rounding,
    oracle.test_average_requantizes_the_sum_with_n_inside_m,
    oracle.test_matmul_of_activations_and_product,
]


def half_up(value: Any, shift: Any) -> Any:
    shift = np.asarray(shift, np.int64)
    return np.where(shift > 0, (value + (np.int64(1) << np.maximum(shift - 1, 0))) >> np.clip(shift, 0, 62), value)


def half_away(value: Any, shift: Any) -> Any:
    return np.sign(value) * half_up(np.abs(value), shift)


def truncate(value: Any, shift: Any) -> Any:
    return value >> np.clip(np.asarray(shift, np.int64), 0, 62)


def caught() -> bool:
    for test in ORACLES:
        try:
            test()
        except AssertionError:
            return True
    return False


def test_nothing_is_caught_where_nothing_is_planted() -> None:
    assert not caught()


@pytest.mark.parametrize("wrong", [half_up, half_away, truncate])
def test_rounding(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "round_shift", wrong)
    monkeypatch.setattr(reference, "round_shift", wrong)
    assert caught()


def test_saturation_that_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapping(op: Any, operands: Any) -> Any:
        return reference._unclamped(op, operands), 0

    monkeypatch.setattr(reference, "compute", wrapping)
    assert caught()


def test_saturation_one_step_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(op: Any, operands: Any) -> Any:
        return np.clip(reference._unclamped(op, operands), op.lo, op.hi - 1), 0

    monkeypatch.setattr(reference, "compute", early)
    assert caught()


def test_zero_point_of_the_result_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "requantize", lambda acc, m, z: rounding.requantize(acc, m, 0))
    assert caught()


def test_zero_point_of_an_operand_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    true = reference._unclamped

    def forgetful(op: Any, operands: Any) -> Any:
        return true(op, [array + o.grid.zero_point for array, o in zip(operands, op.operands, strict=True)])

    monkeypatch.setattr(reference, "_unclamped", forgetful)
    assert caught()
