"""Every operator × every target that runs in this process: float within its tolerance, integer equal, or refused by name.

What a target refuses is stated in ``REFUSED``: a new refusal fails the test, and so does a refusal that has become untrue.
The FPGA emulator has its own conformance test beside its target: one g++ run an operator is too slow for here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cases import FLOAT, INTEGER, WHOLE, Case, float_feeds, float_model, integer_feeds, integer_model, whole_feeds, whole_model
from graphs import Array

import gatewright as gw
from gatewright.frontend.integer import plan
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.tvm.cuda.toolkit import Toolkit

TPU = "tpu:v5e{aot=none}"
TARGETS = ("cpu", "ort", TPU)
CUDA = "cuda:sm_90"
NEEDS_CUDA = pytest.mark.skipif(Toolkit.installed() is None, reason="NVIDIA's compiler is not installed (the extra cuda)")
EVERY = (*TARGETS, pytest.param(CUDA, marks=[pytest.mark.slow, NEEDS_CUDA]))
REFUSED: dict[str, set[str]] = {"cpu": set(), "ort": set(), TPU: set(), CUDA: set()}
"""Names of cases by target."""
OPEN = {"ort": {"ReduceSum", "ReduceSum_of_all", "ReduceProd", "ReduceProd_of_all", "ReduceL1", "ReduceSumSquare", "ReduceSumSquare_of_all",
                "BitShift_LEFT", "BitShift_RIGHT", "Div_by_zero", "Mod_by_zero", "Mod_c_by_zero"}}  # fmt: skip
"""What ONNX leaves open and ONNX Runtime has its own answer to: a sum that overflows is the largest integer, a division by 0 an error."""


@dataclass
class Run:
    """All branches on one target, and the reference's word on the same samples."""

    target: str
    refused: set[str]
    got: dict[str, Array]
    wanted: dict[str, Array]


def one_by_one(run: object, feeds: dict[str, Array]) -> dict[str, Array]:
    """Sample by sample: some branches are not per-sample (a reduction over everything)."""
    samples = len(next(iter(feeds.values())))
    parts = [run({k: v[i : i + 1] for k, v in feeds.items()}) for i in range(samples)]  # type: ignore[operator]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def run_all(target: str, cases: list[Case], build: object, feeds: dict[str, Array], folder: Path) -> Run:
    if target == TPU:
        pytest.importorskip("jax", reason="the TPU's emulator needs jax")
    model: Model = build(cases)  # type: ignore[operator]
    wanted = one_by_one(Reference(model).run, feeds)
    nodes = {problem.node for problem in gw.check(model, target).problems}
    refused = {case.name for case in cases if any(node == n.name for n in _nodes_of(model, case) for node in nodes)}
    kept = [case for case in cases if case.name not in refused]
    with gw.compile(build(kept), target, out=folder / "artifact").load() as executor:  # type: ignore[operator]
        got = one_by_one(executor.run, feeds)
    return Run(target, refused, got, wanted)


def _nodes_of(model: Model, case: Case) -> list[object]:
    return [node for node in model.graph if any((v.name or "").startswith(f"{case.name}_") for v in node.outputs)]


@pytest.fixture(scope="module", params=EVERY)
def floats(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_all(request.param, FLOAT, float_model, float_feeds(), tmp_path_factory.mktemp("float"))


@pytest.fixture(scope="module", params=EVERY)
def integers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_all(request.param, INTEGER, integer_model, integer_feeds(), tmp_path_factory.mktemp("integer"))


@pytest.fixture(scope="module", params=EVERY)
def wholes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    cases = [case for case in WHOLE if case.name not in OPEN.get(request.param, ())]
    return run_all(request.param, cases, whole_model, whole_feeds(), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("case", FLOAT, ids=lambda case: case.name)
def test_float(case: Case, floats: Run) -> None:
    assert (case.name in floats.refused) == (case.name in REFUSED[floats.target])
    if case.name in floats.refused:
        return
    got, wanted = floats.got[f"{case.name}_OUT"], floats.wanted[f"{case.name}_OUT"]
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    assert float(np.max(np.abs(got - wanted))) <= case.tolerance * float(np.max(np.abs(wanted)))


@pytest.mark.parametrize("case", INTEGER, ids=lambda case: case.name)
def test_integer(case: Case, integers: Run) -> None:
    assert (case.name in integers.refused) == (case.name in REFUSED[integers.target])
    if case.name in integers.refused:
        return
    got, wanted = integers.got[f"{case.name}_OUT"].astype(int), integers.wanted[f"{case.name}_OUT"].astype(int)
    # ONNX Runtime goes through float32: given equal inputs it may be one step off, and no more.
    steps = 1 if integers.target == "ort" else 0
    assert int(np.max(np.abs(got - wanted))) <= steps


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_whole_numbers(case: Case, wholes: Run) -> None:
    """Overflow wraps around, a division by 0 gives 0: on every target the same, and no process ends."""
    if case.name in OPEN.get(wholes.target, ()):
        pytest.skip("ONNX leaves it open, and ONNX Runtime has an answer of its own")
    assert (case.name in wholes.refused) == (case.name in REFUSED[wholes.target])
    if case.name not in wholes.refused:
        np.testing.assert_array_equal(wholes.got[f"{case.name}_OUT"], wholes.wanted[f"{case.name}_OUT"])


def test_every_integer_case_is_recognised() -> None:
    """Else the comparison above would be of float arithmetic with float arithmetic."""
    model = integer_model(INTEGER)
    assert {op.output for op in plan(model).integer_ops} >= {f"{case.name}_OUT" for case in INTEGER}


def test_integer_cases_reach_every_kind() -> None:
    kinds = {op.kind for op in plan(integer_model(INTEGER)).integer_ops}
    assert kinds == {"conv", "matmul", "sum", "product", "concat", "average", "maximum", "requantize", "table", "softmax"}
