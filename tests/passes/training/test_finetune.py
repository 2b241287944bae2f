"""Fine-tuning learns, does what its options say, and survives what goes wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from graphs import graph  # noqa: E402
from tasks import accuracy, bars, clusters, cnn, mlp, weights  # noqa: E402

from gatewright.errors import DataError, PassError, UsageError  # noqa: E402
from gatewright.frontend.data import Dataset  # noqa: E402
from gatewright.frontend.model import Model  # noqa: E402
from gatewright.passes.base import PassContext  # noqa: E402
from gatewright.passes.pipeline import Pipeline  # noqa: E402
from gatewright.passes.training.augment import augmentation  # noqa: E402
from gatewright.passes.training.checkpoint import Checkpoint  # noqa: E402
from gatewright.passes.training.executor import Executor  # noqa: E402
from gatewright.passes.training.finetune import Finetune  # noqa: E402
from gatewright.passes.training.loop import rate  # noqa: E402
from gatewright.passes.training.objective import Task  # noqa: E402


def tuned(model: Model, data: Dataset, text: str, **context: object) -> Model:
    return Pipeline.parse(f"finetune{{{text}}}").run(model, PassContext(data=data, **context))  # type: ignore[arg-type]


def same(a: Model, b: Model) -> bool:
    return a.digest == b.digest


@pytest.mark.parametrize("options", ["epochs=8,lr=0.02", "epochs=8,lr=0.05,optimizer=sgd,schedule=step", "epochs=8,lr=0.02,precision=bf16"])
def test_learns(options: str) -> None:
    model, fresh = mlp(), clusters(seed=1)
    assert accuracy(model, fresh) < 0.7
    changed = tuned(model, clusters(), options)
    assert accuracy(changed, fresh) > 0.95
    assert weights(changed)["w1"].dtype == np.float32
    details = changed.history[-1].details
    assert len(details["epochs"]) == 8
    assert details["epochs"][-1]["loss"] < details["epochs"][0]["loss"]


def test_the_same_seed_gives_the_same_bytes_and_another_one_others() -> None:
    runs = [tuned(mlp(), clusters(), "epochs=2", seed=seed).to_bytes() for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_one_step_of_sgd_by_hand() -> None:
    """w − lr·(∂L/∂w + l2·w + l1·sign w), with the gradient's norm clipped in the second run; L the mean squared error."""
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(8, 4)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32), np.ones(2, np.float32)
    target = rng.normal(size=(8, 2)).astype(np.float32)
    model = graph("(float[1,4] x) => (float[1,2] y) { y = Gemm(x, w, b) }", w=w, b=b)
    error = x @ w + b - target
    d_w, d_b = 2 / error.size * x.T @ error + 0.1 * w + 0.01 * np.sign(w), 2 / error.size * error.sum(0)
    options = "epochs=1,lr=0.5,optimizer=sgd,momentum=0,schedule=constant,batch=8,validation=0,l1=0.01,l2=0.1"
    for extra, factor in (("", 1.0), (",clip=0.2", 0.2 / np.sqrt((d_w**2).sum() + (d_b**2).sum()))):
        found = weights(tuned(model, Dataset({"x": x}, target), options + extra))
        np.testing.assert_allclose(found["w"], w - 0.5 * factor * d_w, rtol=1e-5)
        np.testing.assert_allclose(found["b"], b - 0.5 * factor * d_b, rtol=1e-5)


def test_schedules() -> None:
    def at(text: str, *steps: int) -> list[float]:
        (item,) = Pipeline.parse(f"finetune{{{text}}}").passes
        assert isinstance(item, Finetune)
        return [round(rate(item, step, 100), 4) for step in steps]

    assert at("schedule=constant", 0, 99) == [1, 1]
    assert at("schedule=cosine", 0, 50, 99) == [1, 0.5, 0.0002]
    assert at("schedule=step", 0, 59, 60, 84, 85) == [1, 1, 0.1, 0.1, 0.01]
    assert at("schedule=constant,warmup=0.1", 0, 9, 10, 99) == [0.0909, 0.9091, 1, 1]


def test_pruned_zeros_stay_zero_and_can_be_freed() -> None:
    pruned = Pipeline.parse("prune{amount=0.6}").run(tuned(mlp(), clusters(), "epochs=2"), PassContext())
    before = weights(pruned)["w1"] == 0
    assert before.mean() >= 0.5
    kept = weights(tuned(pruned, clusters(), "epochs=3,lr=0.02"))
    assert np.array_equal(kept["w1"] == 0, before)
    assert not kept["b1"].all() or kept["b1"].any(), "biases are not masked"
    freed = weights(tuned(pruned, clusters(), "epochs=3,lr=0.02,zeros=free"))["w1"]
    assert (freed == 0).sum() < before.sum() / 2


def test_frozen_weights_stay() -> None:
    model = mlp()
    changed = weights(tuned(model, clusters(), "epochs=1,freeze=w1|b*"))
    assert [n for n, w in weights(model).items() if not np.array_equal(w, changed[n])] == ["w2"]


def test_early_stopping_keeps_the_best_epoch() -> None:
    noise = clusters(60, spread=3.0)
    changed = tuned(mlp(64), noise, "epochs=60,lr=0.05,patience=3,schedule=constant,validation=0.3")
    details = changed.history[-1].details
    assert len(details["epochs"]) < 60
    scores = [(row["held_out_accuracy"], -row["held_out_loss"]) for row in details["epochs"]]
    assert details["kept_epoch"] == 0 or scores[details["kept_epoch"] - 1] == max(scores)


def test_batch_normalization_frozen_or_trained() -> None:
    model = cnn()
    frozen, trained = (weights(tuned(model, bars(), f"epochs=2,batchnorm={mode}")) for mode in ("frozen", "train"))
    assert np.array_equal(frozen["mean"], weights(model)["mean"])
    assert not np.array_equal(trained["mean"], weights(model)["mean"])
    assert accuracy(tuned(model, bars(), "epochs=8,lr=0.02,batchnorm=train"), bars(seed=1)) > 0.95


def test_a_model_that_mixes_samples_is_trained_sample_by_sample() -> None:
    """Its reshape fixes the batch at 1: gradients of the samples of a batch are summed, and equal those of the free model."""
    fixed = mlp(tail="s = Constant<value = int64[3] {1, 1, 3}>() u = Reshape(z, s) t = Transpose<perm = [1, 0, 2]>(u) "
                     "v = Constant<value = int64[2] {1, 3}>() y = Reshape(t, v)")  # fmt: skip
    free = mlp(tail="y = Identity(z)")
    options = "epochs=2,optimizer=sgd,batch=16"
    a, b = (weights(tuned(m, clusters(48), options)) for m in (fixed, free))
    np.testing.assert_allclose(a["w1"], b["w1"], rtol=1e-4, atol=1e-6)


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_killed_run_goes_on_to_the_same_weights(optimizer: str, tmp_path: Path) -> None:
    text = f"epochs=5,optimizer={optimizer},patience=4,batchnorm=train,shift=1"
    seen: list[str] = []

    def killing(what: str, done: int | None = None, total: int | None = None) -> None:
        seen.append(what)
        if "epoch 4" in what:
            raise KilledError

    whole = tuned(cnn(), bars(), text)
    with pytest.raises(PassError, match="KilledError"):
        tuned(cnn(), bars(), text, checkpoints=tmp_path, progress=killing)
    resumed = tuned(cnn(), bars(), text, checkpoints=tmp_path, progress=lambda what, *_: seen.append(what))
    assert any("going on after epoch 3" in what for what in seen)
    assert same(resumed, whole)
    assert resumed.history[-1].details == whole.history[-1].details


def test_a_run_killed_by_the_system_goes_on(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; from tasks import *\n"
        "from gatewright.passes.base import PassContext; from gatewright.passes.pipeline import Pipeline\n"
        "def die(what, done=None, total=None):\n    if 'epoch 2' in what: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Pipeline.parse('finetune{epochs=3}').run(mlp(), PassContext(data=clusters(), progress=die, checkpoints=Path(sys.argv[1])))"
    )
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(here), str(here.parents[1])], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("finetune-*.npz"))) == 1
    resumed = tuned(mlp(), clusters(), "epochs=3", checkpoints=tmp_path)
    np.testing.assert_allclose(weights(resumed)["w1"], weights(tuned(mlp(), clusters(), "epochs=3"))["w1"], rtol=1e-5, atol=1e-7)


def test_a_damaged_checkpoint_is_an_error_and_another_run_s_is_not_taken(tmp_path: Path) -> None:
    tuned(mlp(), clusters(), "epochs=1", checkpoints=tmp_path)
    (path,) = tmp_path.glob("*.npz")
    tuned(mlp(), clusters(), "epochs=1,lr=0.002", checkpoints=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(PassError, match="is damaged"):
        tuned(mlp(), clusters(), "epochs=1", checkpoints=tmp_path)


def test_a_checkpoint_with_a_pickle_in_it_is_refused(tmp_path: Path) -> None:
    path = Checkpoint(tmp_path, "x").path
    assert path is not None
    np.savez(path, text=np.array([{"epoch": 1}], dtype=object))
    with pytest.raises(PassError, match="is damaged"):
        Checkpoint(tmp_path, "x").load()


def test_a_loss_that_is_no_number_stops_with_the_last_good_weights(tmp_path: Path) -> None:
    data = clusters()
    with pytest.raises(PassError, match=r"the loss is not a number in epoch .*a lower lr") as caught:
        tuned(mlp(), data, "epochs=40,lr=900,optimizer=sgd,schedule=constant,batch=8", checkpoints=tmp_path)
    good = list(tmp_path.glob("*.last_good.onnx"))
    if "epoch 1," not in str(caught.value):
        from gatewright.frontend.load import load

        assert all(np.isfinite(w).all() for w in weights(load(good[0])).values())


def test_no_labels() -> None:
    with pytest.raises(DataError, match="learns from labels"):
        tuned(mlp(), Dataset({"x": np.zeros((20, 4), np.float32)}), "epochs=1")


@pytest.mark.parametrize(("labels", "message"), [
    (np.full(20, 7), "labels run from 7 to 7, output 'z' has 3 classes"),
    (np.zeros((20, 5), np.float32), "fit no output"),
])  # fmt: skip
def test_labels_that_do_not_fit(labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tuned(mlp(), Dataset({"x": np.zeros((20, 4), np.float32)}, labels), "epochs=1")  # type: ignore[arg-type]


def test_too_few_samples_to_hold_out() -> None:
    with pytest.raises(DataError, match="too few to hold out"):
        tuned(mlp(), clusters(6), "epochs=1")


WRONG = ["epochs=0", "lr=0", "validation=0.9", "patience=2,validation=0", "optimizer=lion", "image=28|28", "clip=-1", "smoothing=1"]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_options(text: str) -> None:
    with pytest.raises(UsageError):
        Pipeline.parse(f"finetune{{{text}}}")


def test_options_replay_from_text() -> None:
    text = "finetune{epochs=3,lr=0.01,freeze=a|b,shift=2,image=1|8|8}"
    assert str(Pipeline.parse(text)) == text


@pytest.mark.parametrize(("tail", "shape", "labels", "value", "kind"), [
    ("y = Softmax(z)", 3, np.zeros(4, np.int64), "z", "classes"),
    ("y = LogSoftmax(z)", 3, np.zeros(4, np.uint8), "z", "classes"),
    ("y = Sigmoid(z)", 3, np.zeros((4, 3), np.float32), "z", "binary"),
    ("y = Identity(z)", 3, np.zeros(4, np.int64), "z", "classes"),
    ("y = Relu(z)", 3, np.zeros((4, 3), np.float32), "y", "values"),
])  # fmt: skip
def test_what_is_learned(tail: str, shape: int, labels: object, value: str, kind: str) -> None:
    model = mlp(tail=tail)
    task = Task.of(model, Dataset({"x": np.zeros((4, 4), np.float32)}, labels), Finetune())  # type: ignore[arg-type]
    assert kind == task.kind
    assert task.value in (value, "y")


def test_augmentation_moves_an_image_by_whole_pixels() -> None:
    """A shift of exactly one pixel is a copy of the neighbours; nothing else changes."""
    model = cnn()
    move = augmentation(Finetune(shift=1), model)
    assert move is not None

    x = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)
    moved = move({"x": x}, np.array([[0], [0], [1], [1]]))["x"]
    np.testing.assert_allclose(moved[..., :7, :7], x[..., 1:, 1:], atol=1e-4)
    assert augmentation(Finetune(), model) is None
    with pytest.raises(UsageError, match="which is no image"):
        augmentation(Finetune(shift=1), mlp())


def test_weights_stored_as_integers_become_float() -> None:
    model = graph(
        "(float[1,4] x) => (float[1,3] y) { w = DequantizeLinear(q, s, o) y = MatMul(x, w) }",
        q=np.arange(12, dtype=np.int8).reshape(4, 3), s=np.float32(0.1), o=np.int8(0),
    )  # fmt: skip
    changed = tuned(model, clusters(), "epochs=1")
    assert [n.op_type for n in changed.graph] == ["MatMul"]
    assert accuracy(tuned(model, clusters(), "epochs=8,lr=0.05"), clusters(seed=1)) > 0.9
    assert Executor(changed).parameters.keys() == {next(iter(changed.graph.initializers))}
