"""Distillation: the loss as published, students made smaller, teachers of any kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from graphs import graph  # noqa: E402
from tasks import accuracy, bars, clusters, cnn, mlp, weights  # noqa: E402

from gatewright.errors import DataError, PassError, UsageError  # noqa: E402
from gatewright.frontend.data import Dataset, Input  # noqa: E402
from gatewright.frontend.integer import plan  # noqa: E402
from gatewright.frontend.load import load  # noqa: E402
from gatewright.frontend.model import Model  # noqa: E402
from gatewright.frontend.reference import Reference  # noqa: E402
from gatewright.passes.base import PassContext  # noqa: E402
from gatewright.passes.pipeline import Pipeline  # noqa: E402
from gatewright.passes.training.distil import Distil  # noqa: E402
from gatewright.passes.training.executor import Executor  # noqa: E402
from gatewright.passes.training.lesson import Lesson  # noqa: E402
from gatewright.passes.training.student import blocks, redrawn, shortened  # noqa: E402
from gatewright.passes.training.teacher import Teacher  # noqa: E402


def run(model: Model, text: str, data: Dataset, **context: object) -> Model:
    return Pipeline.parse(text).run(model, PassContext(data=data, **context))  # type: ignore[arg-type]


def softmax(z: object) -> object:
    e = np.exp(z - np.max(z, axis=-1, keepdims=True))  # type: ignore[operator]
    return e / e.sum(-1, keepdims=True)


def logits(model: Model, x: object) -> object:
    return Reference(model).run({"x": x}, trace=True)["z"]  # type: ignore[dict-item]


@pytest.mark.parametrize("teachers", [1, 2])
def test_the_loss_by_hand(teachers: int) -> None:
    """α·T²·KL + (1 − α)·CE, in numpy, from the logits that the reference computes."""
    data = clusters(30)
    x, y = data.feeds(mlp().inputs)["x"], data.labels
    student, panel = mlp(seed=5), [mlp(seed=i) for i in range(teachers)]
    options = Distil(alpha=0.3, temperature=2.5)
    net = Executor(student)
    loss, right = Lesson.of(options, net, panel, data, 0)(net, {"x": x}, y, False)
    z = logits(student, x)
    p = np.mean([softmax(logits(t, x) / 2.5) for t in panel], axis=0)  # type: ignore[operator]
    divergence = (p * (np.log(p) - np.log(softmax(z / 2.5)))).sum(-1).mean()  # type: ignore[operator, arg-type]
    entropy = -np.log(softmax(z)[np.arange(30), y]).mean()  # type: ignore[index]
    assert float(loss.detach()) == pytest.approx(0.3 * 2.5**2 * divergence + 0.7 * entropy, rel=1e-4)
    assert right == (z.argmax(-1) == y).sum()  # type: ignore[attr-defined]


def test_a_student_learns_from_teachers_without_labels() -> None:
    teacher = run(mlp(32), "finetune{epochs=10,lr=0.02}", clusters())
    unlabelled = Dataset(clusters(seed=3).arrays)
    result = Distil(alpha=1, epochs=12, lr=0.02).taught(mlp(8, seed=9), [teacher, teacher], PassContext(data=unlabelled))
    assert accuracy(result.model, clusters(seed=1)) > 0.93


def test_a_narrower_copy_learns_from_the_model_itself() -> None:
    teacher = run(cnn(), "finetune{epochs=6,lr=0.02,batchnorm=train}", bars())
    small = run(teacher, "distil{width=0.5,epochs=8,lr=0.02,batchnorm=train}", bars())
    assert weights(small)["k"].shape == (3, 1, 3, 3)
    assert accuracy(small, bars(seed=1)) > 0.95
    fresh = Pipeline.parse("distil{width=0.5,init=random}").passes[0]
    assert isinstance(fresh, Distil)
    begun, _ = fresh.begin(teacher, seed=4)
    assert not np.allclose(weights(begun)["k"], weights(teacher)["k"][:3])


def test_teacher_and_student_from_files(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    cnn(seed=5).save(path)
    taught = run(cnn(seed=2), f"distil{{teacher={path},epochs=2}}", bars())
    assert taught.history[-1].text == f"distil{{epochs=2,teacher={path}}}"
    learned = run(cnn(seed=2), f"distil{{student={path},epochs=1}}", bars())
    assert learned.name == "g"
    assert np.abs(weights(learned)["k"] - weights(cnn(seed=5))["k"]).max() < 0.1, "the file's weights, a little trained"


def test_a_quantized_student_stays_exactly_quantized() -> None:
    teacher = run(mlp(32), "finetune{epochs=10,lr=0.02}", clusters())
    quantized = run(teacher, "quantize{bits=3}", clusters())
    result = Distil(epochs=12, lr=0.01).taught(quantized, [teacher], PassContext(data=clusters())).model
    assert accuracy(result, clusters(seed=1)) > max(accuracy(quantized, clusters(seed=1)), 0.9)
    assert [op.kind for op in plan(result).integer_ops] == [op.kind for op in plan(quantized).integer_ops]
    assert not plan(result).notes


def test_a_forest_teaches_a_network(shared_model: Callable[[str], Path], shared_data: Callable[[str], Path]) -> None:
    forest = load(shared_model("skl_digits_rf.onnx"))
    data = Dataset.load(shared_data("sk_digits.npz"), {"X": Input(dtype="float32")}, part="train")
    rng = np.random.default_rng(0)
    student = graph(
        "(float[1,64] X) => (float[1,10] y) { h = Gemm(X, w1, b1) r = Relu(h) y = Gemm(r, w2, b2) }",
        w1=(rng.normal(size=(64, 24)) / 40).astype(np.float32), b1=np.zeros(24, np.float32),
        w2=(rng.normal(size=(24, 10)) / 4).astype(np.float32), b2=np.zeros(10, np.float32),
    )  # fmt: skip
    unlabelled = Dataset(data.arrays, None, data.preparation)
    result = Distil(alpha=1, temperature=1, epochs=8, lr=0.005).taught(student, [forest], PassContext(data=unlabelled))
    test = Dataset.load(shared_data("sk_digits.npz"), {"X": Input(dtype="float32")})
    assert accuracy(result.model, test) > 0.9


def test_features_are_matched_through_a_projection() -> None:
    teacher, student = mlp(32), mlp(8, seed=1)
    lesson = Lesson.of(Distil(features=("r:r", "z:z"), beta=2.0), Executor(student), [teacher], clusters(), 0)
    assert {name: tuple(p.shape) for name, p in lesson.projections.items()} == {"r": (32, 8)}
    x = clusters(12).feeds(student.inputs)["x"]
    net = Executor(student)
    plain = Lesson.of(Distil(), net, [teacher], clusters(), 0)(net, {"x": x}, clusters(12).labels, False)[0]
    with_features = lesson(net, {"x": x}, clusters(12).labels, False)[0]
    traced = [Reference(m).run({"x": x}, trace=True) for m in (student, teacher)]
    projected = traced[0]["r"] @ lesson.projections["r"].detach().numpy().T
    expected = 2 * (((projected - traced[1]["r"]) ** 2).mean() + ((traced[0]["z"] - traced[1]["z"]) ** 2).mean())
    assert float((with_features - plain).detach()) == pytest.approx(expected, rel=1e-3)
    before = lesson.projections["r"].detach().clone()
    Distil(features=("r:r",), epochs=1).taught(student, [teacher], PassContext(data=clusters()))
    assert torch.equal(before, lesson.projections["r"]), "each run draws its own"


def test_a_teacher_runs_any_number_of_samples() -> None:
    model = mlp()
    x = clusters(150).feeds(model.inputs)["x"]
    for remember in (False, True):
        teacher = Teacher(model, model.inputs, (3,), remember=remember)
        np.testing.assert_allclose(teacher({"x": x})[0].numpy(), logits(model, x), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
        again = teacher({"x": x[::-3].copy()})[0].numpy()
        np.testing.assert_allclose(again, logits(model, x[::-3]), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_what_a_teacher_said_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    teacher = Teacher(model, model.inputs, (3,), remember=True)
    x = clusters(20).feeds(model.inputs)["x"]
    first = teacher({"x": x})[0]
    monkeypatch.setattr(teacher, "_said", None)
    assert torch.equal(teacher({"x": x[5:]})[0], first[5:])


RESIDUAL = (
    "(float[1,8] x) => (float[1,8] y) { a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Add(c, b) e = Relu(d) "
    "f = MatMul(e, w2) g = Add(f, e) h = Relu(g) y = MatMul(h, w3) }"
)


def residual() -> Model:
    rng = np.random.default_rng(0)
    return graph(RESIDUAL, **{f"w{i}": rng.normal(0, 0.4, (8, 8)).astype(np.float32) for i in range(4)})


def test_blocks_are_left_out() -> None:
    model = residual()
    assert [(a.name, b.name) for a, b in blocks(model.graph)] == [("a", "d"), ("d", "g")] or len(blocks(model.graph)) == 2
    short, dropped = shortened(model, 0.5)
    assert len(dropped) == 1
    assert sum(n.op_type == "MatMul" for n in short.graph) == 3
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    assert Reference(short).run({"x": x})["y"].shape == (3, 8)
    with pytest.raises(PassError, match="no block that can be left out"):
        shortened(mlp(), 0.5)


def test_a_student_of_its_own_is_the_copy_that_distil_begins_with() -> None:
    for options in ("depth=0.5", "width=0.5,init=random"):
        model = residual() if "depth" in options else cnn()
        (item,) = Pipeline.parse(f"distil{{{options}}}")
        assert isinstance(item, Distil)
        begun, notes = item.begin(model, seed=3)
        copied = Pipeline.parse(f"student{{{options}}}").run(model, PassContext(seed=3))
        assert copied.digest == begun.digest != model.digest
        assert copied.history[-1].notes == notes
    for wrong in ("student{width=0}", "student{depth=1.5}"):
        with pytest.raises(UsageError, match="more than 0, up to 1"):
            Pipeline.parse(wrong)
    with pytest.raises(PassError, match="no smaller copy is made of it"):
        run(mlp(), "quantize,student{width=0.5}", clusters())


def test_fresh_weights_have_the_variance_of_their_layer() -> None:
    rng = np.random.default_rng(0)
    model = graph(
        "(float[1,200] x) => (float[1,300] y) { h = MatMul(x, w) y = Add(h, b) }",
        w=rng.normal(size=(200, 300)).astype(np.float32), b=np.ones(300, np.float32),
    )  # fmt: skip
    drawn = weights(redrawn(model, 1))
    assert drawn["w"].std() == pytest.approx(np.sqrt(2 / 200), rel=0.02)
    assert not drawn["b"].any()
    assert np.array_equal(weights(redrawn(model, 1))["w"], drawn["w"])
    assert not np.array_equal(weights(redrawn(model, 2))["w"], drawn["w"])


@pytest.mark.parametrize("text", ["temperature=0", "alpha=1.5", "width=0", "depth=2", "features=a", "beta=-1"])
def test_wrong_options(text: str) -> None:
    with pytest.raises(UsageError):
        Pipeline.parse(f"distil{{{text}}}")


def test_what_cannot_be_taught() -> None:
    with pytest.raises(PassError, match="learns nothing from itself"):
        run(mlp(), "distil", clusters())
    with pytest.raises(DataError, match="alpha=1 learns from the teachers alone"):
        run(mlp(), "distil{width=0.5}", Dataset(clusters().arrays))
    with pytest.raises(PassError, match="no smaller copy is made of it"):
        run(mlp(), "quantize,distil{width=0.5}", clusters())
    two = graph("(float[1,4] x) => (float[1,2] y) { y = MatMul(x, w) }", w=np.ones((4, 2), np.float32))
    with pytest.raises(PassError, match=r"the student \[3\]"):
        Distil().taught(mlp(), [two], PassContext(data=clusters()))
    with pytest.raises(DataError, match="both learn from the same prepared data"):
        Distil().taught(mlp(), [cnn()], PassContext(data=clusters()))
    with pytest.raises(UsageError, match="no such inner tensor"):
        run(mlp(), "distil{width=0.5,features=nothing:z}", clusters())
    with pytest.raises(PassError, match="no tensor 'nothing'"):
        run(mlp(), "distil{width=0.5,features=z:nothing}", clusters())


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    teacher = run(mlp(32), "finetune{epochs=4,lr=0.02}", clusters())
    options = Distil(epochs=4, features=("r:r",))

    def killing(what: str, done: int | None = None, total: int | None = None) -> None:
        if "epoch 3" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        options.taught(mlp(8), [teacher], PassContext(data=clusters(), checkpoints=tmp_path, progress=killing))
    resumed = options.taught(mlp(8), [teacher], PassContext(data=clusters(), checkpoints=tmp_path))
    assert resumed.model.digest == options.taught(mlp(8), [teacher], PassContext(data=clusters())).model.digest
