"""Constant matrices as additions: exact for every input, with widths that hold, and with fewer additions than digits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatewright.targets.rtl import interpret, matrix
from gatewright.targets.rtl.matrix import Program, Strategy, signed_digits, solve
from gatewright.targets.rtl.network import Array, Builder, Network, Port, settled


def network_of(program: Program, bounds: list[tuple[int, int]]) -> Network:
    builder = Builder()
    builder.layer("test")
    inputs = [builder.input(0, i, lo, hi) for i, (lo, hi) in enumerate(bounds)]
    outputs = program.apply(builder, inputs)
    lo, hi = min(b[0] for b in bounds), max(b[1] for b in bounds)
    return Network((Port("x", (1, len(bounds)), "int16", lo, hi),), (), tuple(builder.nodes), (tuple(outputs),), ("test",)).pruned()


def run_checked(network: Network, x: Array) -> Array:
    """Outputs; every value inside must lie in its node's interval."""
    values = interpret.evaluate(network, [x])
    for node, value in zip(network.nodes, values, strict=True):
        assert node.lo <= int(value.min())
        assert int(value.max()) <= node.hi
    return interpret.run(network, [x])[0]


@given(st.integers(-(2**20), 2**20))
def test_signed_digits_are_the_number_and_never_adjacent(value: int) -> None:
    digits = signed_digits(value)
    assert sum(sign << shift for shift, sign in digits) == value
    assert all(b - a >= 2 for (a, _), (b, _) in itertools.pairwise(digits))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.floats(0, 0.9), st.integers(0, 2**32 - 1), st.integers(0, 4), st.booleans(),
    st.sampled_from([None, 1, 2, 4]),
)  # fmt: skip
def test_program_is_the_matrix(
    rows: int, columns: int, bits: int, sparsity: float, seed: int, slack: int, costly: bool, together: int | None
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-(2**bits), 2**bits, (rows, columns))
    weight[rng.random(weight.shape) < sparsity] = 0
    constants = rng.integers(-300, 300, rows) * rng.integers(0, 2, rows)
    lows = rng.integers(-40, 40, columns)
    bounds = [(int(lo), int(lo + spread)) for lo, spread in zip(lows, rng.integers(0, 90, columns), strict=True)]
    x = np.stack([rng.integers(lo, hi + 1, 40) for lo, hi in bounds], axis=1)
    network = network_of(solve(weight, constants.tolist(), bounds, Strategy(slack, costly, together)), bounds)
    assert np.array_equal(run_checked(network, x), x @ weight.T + constants)


def test_widths_are_exact_where_terms_cancel() -> None:
    """7x = 8x − x: from the operands' own bounds it would seem to reach −15."""
    bounds = [(0, 15)]
    network = network_of(solve(np.array([[7]]), [0], bounds), bounds)
    (last,) = (node for node in network.nodes if node.op == "add")
    assert (last.lo, last.hi) == (0, 105)


def test_sharing_saves_additions() -> None:
    rng = np.random.default_rng(3)
    weight = rng.integers(-7, 8, (16, 24))
    digits = sum(len(signed_digits(int(w))) for w in weight.flat)
    program = solve(weight, [0] * 16, [(0, 15)] * 24)
    assert len(program.steps) < 0.7 * (digits - 16)


@pytest.mark.parametrize(("together", "shared"), [(1, False), (4, True)])
def test_terms_are_shared_among_so_many_rows(together: int, shared: bool) -> None:
    """What two groups need is made in each of them: no wire leads from one to the other."""
    rng = np.random.default_rng(3)
    program = solve(rng.integers(-7, 8, (16, 24)), [5] * 16, [(0, 15)] * 24, Strategy(rows=together))
    needed: list[set[int]] = []
    for row in program.rows:
        assert row is not None
        found, open_ = set(), [row.value]
        while open_:
            value = open_.pop()
            if value >= 24 and value not in found:
                found.add(value)
                open_ += [program.steps[value - 24].a, program.steps[value - 24].b]
        needed.append(found)
    pairs = list(itertools.combinations(range(16), 2))
    apart = [needed[i] & needed[j] for i, j in pairs if i // together != j // together]
    assert not any(apart)
    assert any(needed[i] & needed[j] for i, j in pairs if i // together == j // together) == shared


def test_blocks_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "PAIRS_AT_ONCE", 60)
    rng = np.random.default_rng(4)
    weight, bounds = rng.integers(-100, 100, (5, 30)), [(-8, 7)] * 30
    x = rng.integers(-8, 8, (20, 30))
    assert np.array_equal(run_checked(network_of(solve(weight, [3] * 5, bounds), bounds), x), x @ weight.T + 3)


def test_a_planted_sign_is_caught() -> None:
    bounds = [(0, 15)] * 4
    program = solve(np.array([[3, 5, -7, 1]]), [0], bounds)
    step = program.steps[0]
    broken = Program((matrix.Step(step.a, step.b, step.i, step.j, -step.sign), *program.steps[1:]), program.rows, (), program.coefficients)
    x = np.array([[1, 2, 3, 4]])
    assert not np.array_equal(interpret.run(network_of(broken, bounds), [x])[0], x @ np.array([[3, 5, -7, 1]]).T)


@given(st.integers(-(2**16), 2**16), st.integers(1, 8), st.integers(-9, 9))
def test_settled_is_rounding_half_to_even(value: int, k: int, z: int) -> None:
    odd = z & 1
    t = value + (z << k) + (1 << (k - 1)) - odd
    assert settled(t, k, odd) == round(value / 2**k) + z  # Python rounds half to even, and the quotient is exact
