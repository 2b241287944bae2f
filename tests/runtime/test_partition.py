"""What a target refuses runs elsewhere: the parts compute what the whole does, none of it in silence, and integers stay exact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Array, graph
from hypothesis import HealthCheck, given, settings
from report_schema import REPORT
from strategies import dataset, feeds, float_models, quantized_models
from toy_target import PickyOptions, PickyTarget

import gatewright as gw
from gatewright.errors import UnsupportedOp
from gatewright.frontend.integer import plan
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.runtime import partition
from gatewright.runtime.cli import app
from gatewright.runtime.partition import Cut, cut
from gatewright.runtime.targetspec import resolve

MIDDLE = "(float[1,8] x) => (float[1,3] y) { a = Relu(x) b, i = TopK<axis = 1>(a, k) c = Mul(a, b) y = MatMul(c, w) }"
"""Relu and the rest around a TopK, which the picky target refuses."""
LACKING = '(float[1,8] x) => (float[1,3] y) { a = Relu(x) b = Einsum<equation = "bi,bi,bi->bi">(a, a, a) c = Mul(a, b) y = MatMul(c, w) }'
"""The same around a product of three, which the CPU target has no kernel for."""


@pytest.fixture
def middle() -> Model:
    return graph(MIDDLE, k=np.array([8]), w=np.arange(24, dtype=np.float32).reshape(8, 3) / 7).renamed("middle")


@pytest.fixture
def lacking() -> Model:
    return graph(LACKING, w=np.arange(24, dtype=np.float32).reshape(8, 3) / 7).renamed("middle")


def picky(*refuses: str) -> PickyTarget:
    return PickyTarget(None, PickyOptions(refuses))


def run(found: Cut, given: dict[str, Array]) -> dict[str, Array]:
    """The parts one after the other, as their executors would."""
    from gatewright.targets.ort.target import OrtExecutor, OrtOptions

    values = dict(given)
    for part in found.parts:
        executor = OrtExecutor(part.model, OrtOptions()) if part.target.name == "ort" else Reference(part.model)
        values.update(executor.run({info.name: values[info.name] for info in part.model.inputs}))
    return {info.name: values[info.name] for info in found.model.outputs}


def is_ordered(found: Cut) -> bool:
    """Every value is there when its part runs."""
    known = {info.name for info in found.model.inputs}
    for part in found.parts:
        if not known.issuperset(info.name for info in part.model.inputs):
            return False
        known |= {info.name for info in part.model.outputs}
    return known.issuperset(info.name for info in found.model.outputs)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(quantized_models())
def test_integers_are_exact_wherever_they_run(model: Model) -> None:
    for refuses in ("integers", "conv", "sum", "table", "matmul", "Softmax", "QuantizeLinear"):
        found = cut(model, picky(refuses))
        if found is None:
            continue
        assert is_ordered(found)
        given = feeds(model, 1, seed=3)
        wanted = Reference(model).run(given)
        for name, array in run(found, given).items():
            np.testing.assert_array_equal(array, wanted[name])
        whole = sorted(op.output for op in plan(model).integer_ops)
        assert whole == sorted(op.output for part in found.parts for op in plan(part.model).integer_ops)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(float_models())
def test_float_parts_compute_the_whole(model: Model) -> None:
    found = cut(model, picky("half"))
    if found is None:
        return
    assert is_ordered(found)
    assert sum(part.steps for part in found.parts) >= len(plan(model).steps) - len(model.graph.initializers)
    given = feeds(model, 1, seed=3)
    for name, wanted in Reference(model).run(given).items():
        np.testing.assert_allclose(run(found, given)[name], wanted, rtol=1e-4, atol=1e-5)


def test_refused_integers_go_to_the_exact_engine(quantized: Model) -> None:
    found = cut(quantized, picky("matmul"))
    assert found is not None
    assert {part.target.name for part in found.parts if part.reasons} == {"ref"}


@pytest.fixture
def quantized() -> Model:
    w = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    model = graph("(float[1,8] x) => (float[1,5] y) { a = MatMul(x, w) y = Relu(a) }", w=w)
    return gw.transform(model, "fuse,quantize{bits=8,grid=pow2}", dataset(model))


def test_what_is_computed_from_a_refused_constant_goes_where_that_goes() -> None:
    """A refused DequantizeLinear of a constant, what is made of it, and only then a reader of an input."""
    model = graph(
        "(float[1,4] x) => (float[1,4] y) { d = DequantizeLinear(q, s) e = Exp(d) f = Neg(e) a = Relu(x) y = Mul(a, f) }",
        q=np.array([[1, 2, 3, 4]], np.int8), s=np.array(0.5, np.float32),
    )  # fmt: skip
    assert [node.op_type for node in model.graph].count("Exp") == 1
    found = cut(model, picky("DequantizeLinear"))
    assert found is not None
    assert [part.target.name for part in found.parts][-1] == "ort"
    own = [node.op_type for part in found.parts if part.target.name == "picky" for node in part.model.graph]
    assert "DequantizeLinear" not in own
    x = np.array([[1, -2, 3, 4]], np.float32)
    np.testing.assert_allclose(run(found, {"x": x})["y"], Reference(model).run({"x": x})["y"], rtol=1e-6)


def test_nothing_is_cut_where_nothing_is_refused(middle: Model) -> None:
    assert cut(middle, picky()) is None
    assert cut(middle, PickyTarget(None, PickyOptions(("Relu",), fallback=False))) is None


def test_steps_that_need_not_wait_share_a_part() -> None:
    """Two refused nodes on branches of their own, which the rest waits for: one part, although one of them could run first."""
    model = graph(
        "(float[1,4] x) => (float[1,4] y) { a, i = TopK<axis = 1>(x, k) b = Exp(x) c, j = TopK<axis = 1>(b, k) y = Add(a, c) }",
        k=np.array([4]),
    )
    found = cut(model, picky("TopK"))
    assert found is not None
    assert [(part.target.name, part.steps) for part in found.parts] == [("picky", 1), ("ort", 2), ("picky", 1)]


def test_a_value_that_leaves_and_comes_back_is_no_cycle() -> None:
    """x → a → (refused) b → c, and a → c: the picky steps before and after the refused one cannot be one part."""
    model = graph("(float[1,4] x) => (float[1,4] c) { a = Exp(x) b, i = TopK<axis = 1>(a, k) c = Add(a, b) }", k=np.array([4]))
    found = cut(model, picky("TopK"))
    assert found is not None
    assert [part.target.name for part in found.parts] == ["picky", "ort", "picky"]
    # a (16 bytes) goes to two other parts, b to one.
    assert [part.received_bytes for part in found.parts] == [0, 16, 32]
    assert found.crossing_bytes == 48


def test_what_no_engine_runs_is_named(middle: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "FALLBACKS", ())
    with pytest.raises(UnsupportedOp, match=r"picky does not support node '.*' \(TopK\): it is too picky, and neither"):
        cut(middle, picky("TopK"))


def test_an_engine_that_refuses_is_passed_over(middle: Model, lacking: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from gatewright.targets.ort.target import OrtTarget

    refusal = gw.check(lacking, "cpu{fallback=none}").problems
    check = type(gw.check(middle, "ref"))(problems=refusal)
    monkeypatch.setattr(OrtTarget, "check", lambda self, model: check)
    found = cut(middle, picky("TopK"))
    assert found is not None
    assert [part.target.name for part in found.parts] == ["picky", "ref", "picky"]


def test_check_says_what_falls_back_and_what_it_costs(middle: Model, toys: list[str]) -> None:
    found = gw.check(middle, "picky{refuses=TopK}")
    assert found.ok
    assert any("1 of 4 operations run on ort: " in note and "(TopK): it is too picky" in note for note in found.notes)
    assert found.figures["handed over"].value == 32 + 64
    assert not gw.check(middle, "picky{refuses=TopK,fallback=false}").ok


def test_the_artifact_is_a_folder_of_artifacts(middle: Model, toys: list[str], tmp_path: Path) -> None:
    made = gw.compile(middle, "picky{refuses=TopK}", out=tmp_path / "made")
    ours = "picky{refuses=TopK,fallback=false}"
    assert [part["target"] for part in made.parts] == [ours, "ort", ours]
    (refused,) = (node.name for node in middle.graph if node.op_type == "TopK")
    assert made.parts[1]["reasons"] == {f"{refused} (TopK)": "it is too picky"}
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    wanted = Reference(middle).run({"x": x})["y"]
    with made.load() as executor:
        np.testing.assert_allclose(executor.run({"x": x})["y"], wanted, rtol=1e-5)
        assert set(executor.trace({"x": x})) >= {"a", "b", "c", "y"}
    inner = tmp_path / "made" / made.parts[1]["folder"] / "model.onnx"
    inner.write_bytes(inner.read_bytes() + b" ")
    with pytest.raises(gw.GatewrightError, match="was changed after it was made"):
        gw.Artifact.open(tmp_path / "made", made.context)


def test_the_report_names_the_parts(middle: Model, toys: list[str]) -> None:
    import jsonschema

    data = gw.Dataset({"x": np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)}, name="noise")
    report = gw.compare(middle, ["picky{refuses=TopK}"], data, metric="agreement", rounds=1)
    jsonschema.validate(report.to_json(), REPORT)
    (row,) = report.rows
    assert [part.target.partition("{")[0] for part in row.parts] == ["picky", "ort", "picky"]
    assert all(part.seconds is not None and part.seconds > 0 for part in row.parts)
    assert row.error_ref is not None
    assert row.error_ref.mismatching_samples == 0


@pytest.mark.parametrize("text", ["cpu", "cpu{batch=4}"])
def test_target_cpu(lacking: Model, text: str, tmp_path: Path) -> None:
    made = gw.compile(lacking, text, out=tmp_path / "made")
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    with made.load() as executor:
        assert executor.mode == "device"
        assert executor.batch == (4 if "4" in text else 1)
        np.testing.assert_allclose(executor.run({"x": x})["y"], Reference(lacking).run({"x": x})["y"], rtol=1e-5)
    assert [part["target"].partition("{")[0] for part in made.parts] == ["cpu", "ort", "cpu"]


def test_a_kernel_that_cannot_be_built_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the compiler finds out; then its node runs elsewhere, and the artifact says so. Without other engines it is refused by name."""
    from gatewright.targets.tvm import worker
    from gatewright.targets.tvm.ops import movement
    from gatewright.targets.tvm.target import CpuTarget

    def compile_here(self: CpuTarget, job: dict[str, object], folder: Path, context: object) -> None:
        (folder / worker.JOB).write_text(json.dumps(job), encoding="utf-8")
        worker.main(folder)

    def fails(*_: object) -> None:
        raise ValueError("no such thing")

    model = graph("(float[1,8] x) => (float[1,8] y) { a = Relu(x) b = Trilu(a) y = Exp(b) }").renamed("unbuildable")
    monkeypatch.setattr(CpuTarget, "_compile", compile_here)
    monkeypatch.setitem(movement.LOWERINGS, "Trilu", fails)
    with pytest.raises(UnsupportedOp, match=r"\(Trilu\): TVM cannot make a kernel of it: no such thing"):
        gw.compile(model, "cpu{fallback=none}", out=tmp_path / "none")
    made = gw.compile(model, "cpu", out=tmp_path / "made")
    assert [part["target"].partition("{")[0] for part in made.parts] == ["cpu", "ort", "cpu"]
    assert any("no such thing" in note for note in made.manifest["target"]["notes"])
    x = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    with made.load() as executor:
        np.testing.assert_allclose(executor.run({"x": x})["y"], Reference(model).run({"x": x})["y"], rtol=1e-5)


def test_command_line(lacking: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lacking.save(tmp_path / "middle.onnx")
    file, folder = str(tmp_path / "middle.onnx"), str(tmp_path / "made")
    assert exit_code("check", file, "-t", "cpu{fallback=none}") == 3
    assert "Einsum" in capsys.readouterr().out
    assert exit_code("compile", file, "-t", "cpu{fallback=none}", "-o", folder) == 3
    assert "there is no kernel for this operator" in capsys.readouterr().err
    assert exit_code("compile", file, "-t", "cpu", "-o", folder) == 0
    assert "run on ort" in capsys.readouterr().out
    assert exit_code("inspect", folder) == 0
    assert "there is no kernel for this operator" in capsys.readouterr().out
    np.save(tmp_path / "x.npy", np.ones((3, 8), np.float32))
    assert exit_code("run", folder, "--data", str(tmp_path / "x.npy"), "--json", str(tmp_path / "run.json")) == 0
    assert [part["target"] for part in json.loads((tmp_path / "run.json").read_text())["parts"]][1] == "ort"


def test_a_real_model(shared_model: Callable[[str], Path]) -> None:
    """A support vector machine with probabilities is whole on the CPU target, and what it is made of can be cut."""
    model = gw.load(shared_model("skl_wine_svc_prob.onnx"))
    assert cut(model, resolve("cpu")) is None
    x = np.random.default_rng(0).uniform(0, 10, (5, *model.inputs[0].shape[1:])).astype(np.float32)
    found, wanted = cut(model, picky("Exp")), Reference(model).run({model.inputs[0].name: x})
    assert found is not None
    assert len(found.parts) == 3
    for row in range(len(x)):
        for name, array in run(found, {model.inputs[0].name: x[row : row + 1]}).items():
            np.testing.assert_allclose(array, wanted[name][row : row + 1], rtol=1e-4, atol=1e-5)


def exit_code(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(list(words))
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("y = NonMaxSuppression(b, s, n)", "how many values come out depends on the data"),
        ("r = RandomUniformLike(b) e = ReduceSum<keepdims = 0>(r) c = Cast<to = 7>(e) y = Expand(c, k)", "its values are random"),
    ],
)
def test_what_no_kernel_can_be_says_why(body: str, why: str) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,6,4] b, float[1,1,6] s) => (int64[3,3] y) '
        f"<int64[1] n = {{3}}, int64[2] k = {{3, 3}}> {{ {body} }}"
    )
    (problem,) = resolve("cpu{fallback=none}").check(gw.load(onnx.parser.parse_model(text))).problems
    assert why in problem.rule
