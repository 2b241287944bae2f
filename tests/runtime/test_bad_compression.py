"""Compression that cannot be done, from the command line: one clear line, the right exit code, the model on disk untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import graph
from test_bad_input import assert_clear, contents
from typer.testing import CliRunner

from gatewright.frontend.data import Dataset
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.runtime.cli import app

TRAIN = "epochs=1"


@pytest.fixture
def here(mlp: Model, samples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models and data, good and bad, and the working directory in it."""
    monkeypatch.chdir(tmp_path)
    mlp.save(tmp_path / "good.onnx")
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 3)).astype(np.float32)
    graph("(float[1,4] x) => (float[1,3] y) { y = Gemm(x, w, b) }", w=w, b=np.zeros(3, np.float32)).save(tmp_path / "one.onnx")
    graph("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }").save(tmp_path / "weightless.onnx")
    x, y = samples.inputs["x"], np.asarray(samples.labels)
    np.savez("good.npz", x=x, y=y)
    np.savez("unlabelled.npz", x=x)
    np.savez("few.npz", x=x[:3], y=y[:3])
    np.savez("classes.npz", x=x, y=y + 90)
    holed = x.copy()
    holed[5, 0] = np.nan
    np.savez("holed.npz", x=holed, y=y)
    return tmp_path


LEARN = ["learns from labels", "labels=NAME"]
CASES: dict[str, tuple[str, str, str | None, int, list[str]]] = {
    "no data to learn from": ("good.onnx", "finetune", None, 1, ["needs data to learn from", "--data"]),
    "no data to judge by": ("good.onnx", "prune{importance=taylor}", None, 1, ["importance=taylor", "--data"]),
    "no labels, finetune": ("good.onnx", f"finetune{{{TRAIN}}}", "unlabelled.npz", 1, LEARN),
    "no labels, qat": ("good.onnx", f"qat{{bits=4,{TRAIN}}}", "unlabelled.npz", 1, LEARN),
    "no labels, distil": ("good.onnx", f"distil{{width=0.5,{TRAIN}}}", "unlabelled.npz", 1, ["learns from labels too", "alpha=1"]),
    "no labels, gradual": ("good.onnx", "gradual{finetune=finetune{epochs=1}}", "unlabelled.npz", 1, LEARN),
    "no labels, cluster": ("good.onnx", "cluster{finetune=finetune{epochs=1}}", "unlabelled.npz", 1, LEARN),
    "no labels, gradients": ("good.onnx", "prune{importance=gradient}", "unlabelled.npz", 1, ["against labels", "magnitude"]),
    "no labels, mutual information": ("good.onnx", "prune{kind=channel,importance=mutual}", "unlabelled.npz", 1, ["labels", "entropy"]),
    "labels of other classes": ("good.onnx", f"finetune{{{TRAIN}}}", "classes.npz", 1, ["labels run from 90", "3 classes"]),
    "too few to hold out": ("good.onnx", f"finetune{{{TRAIN}}}", "few.npz", 1, ["3 samples", "too few", "validation=0"]),
    "data that is no number": ("good.onnx", f"finetune{{{TRAIN},validation=0}}", "holed.npz", 1, ["input 'x'", "1 of the batch's", "NaN"]),
    "the loss diverges": (
        "good.onnx", "finetune{epochs=40,lr=900,optimizer=sgd,schedule=constant,batch=8}", "good.npz", 1, ["epoch", "a lower lr than 900"],
    ),
    "no layer can lose channels": ("one.onnx", "prune{kind=channel}", None, 1, ["Gemm_0", "graph output 'y'", "kind=magnitude"]),
    "no heads": ("good.onnx", "prune{kind=head}", None, 1, ["no attention heads"]),
    "no branches": ("good.onnx", "prune{kind=layer}", None, 1, ["no residual branch"]),
    "no pattern": ("good.onnx", "prune{kind=nm,n=2,m=64}", None, 1, ["keep 2 of 64", "no multiple of 64"]),
    "nothing to prune": ("weightless.onnx", "prune", None, 1, ["no weights to prune"]),
    "nothing to train": ("weightless.onnx", f"finetune{{{TRAIN}}}", "good.npz", 1, ["no weights to train"]),
    "all of everything": ("good.onnx", "prune{amount=1}", None, 2, ["'amount'", "not including, 1"]),
    "all weights of a layer": ("good.onnx", "prune{amount=0.99,scope=global}", None, 1, ["nothing would be left of", "lower amount"]),
    "all weights below a threshold": ("good.onnx", "prune{threshold=1000}", None, 1, ["nothing would be left of", "lower amount"]),
    "more than can go": ("good.onnx", "prune{kind=channel,measure=macs,amount=0.999}", None, 1, ["99.9%", "ask for less"]),
    "pruning integers": ("good.onnx", "quantize,prune", "good.npz", 1, ["model is quantized", "prune first"]),
    "one worker that waits for nobody": ("good.onnx", "finetune{sync=false}", "good.npz", 2, ["several workers", "workers=2"]),
    "a teacher that is not there": ("good.onnx", "distil{teacher=big.onnx}", "good.npz", 1, ["big.onnx"]),
    "nobody to learn from": ("good.onnx", "distil", "good.npz", 1, ["nothing from itself", "width="]),
    "no block to leave out": ("good.onnx", "distil{depth=0.5}", "good.npz", 1, ["no block", "width="]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(case: str, here: Path) -> None:
    model, pipeline, data, code, expected = CASES[case]
    if any(name in pipeline for name in ("finetune", "qat", "distil", "gradient", "taylor")):
        pytest.importorskip("torch")
    before = contents(here)
    result = CliRunner().invoke(app, ["transform", model, "-p", pipeline, *(["--data", data] if data else []), "-o", "out.onnx"])
    assert_clear(result.stderr, result.stdout)
    assert result.exit_code == code, result.stderr
    for word in expected:
        assert word in result.stderr
    assert contents(here) == before, "nothing is left behind, nothing is touched"


def test_too_few_samples_for_the_folds(here: Path) -> None:
    pytest.importorskip("optuna")
    before = contents(here)
    result = CliRunner().invoke(app, ["optimize", "good.onnx", "-t", "cpu", "--data", "few.npz", "--folds", "5", "-o", "study"])
    assert_clear(result.stderr, result.stdout)
    assert result.exit_code == 1
    assert "3 samples are too few for 5 folds" in result.stderr
    assert contents(here) == before


def test_what_a_pass_could_not_do_is_said(here: Path) -> None:
    result = CliRunner().invoke(app, ["transform", "good.onnx", "-p", "prune{kind=channel,device=host}", "-o", "out.onnx"])
    assert result.exit_code == 0, result.stderr
    assert "keeps its channels: it is the graph output" in result.stdout
    assert "prune: estimated on" in result.stdout


def test_a_loss_that_diverges_late_leaves_the_last_good_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch's gradients are infinite while its loss is not: the weights of the first are kept, and are numbers."""
    torch = pytest.importorskip("torch")
    from gatewright.passes.training.batches import Batches

    honest = Batches.gradient

    def wild(self: Batches, epoch: int, step: int, share: int = 0, shares: int = 1) -> object:
        told = honest(self, epoch, step, share, shares)
        if epoch == 1 and step == self.steps - 1:
            for p in self.net.parameters.values():
                p.grad = torch.full_like(p, torch.inf)
        return told

    monkeypatch.setattr(Batches, "gradient", wild)
    words = ["transform", "good.onnx", "-p", "finetune{epochs=2,validation=0}", "--data", "good.npz", "-o", "out.onnx"]
    before = contents(here)
    result = CliRunner().invoke(app, [*words, "--checkpoints", "kept"])
    assert_clear(result.stderr, result.stdout)
    assert result.exit_code == 1
    assert "a gradient is not finite in epoch 2" in result.stderr
    assert "the model after epoch 1 is in kept" in result.stderr
    (good,) = Path("kept").glob("*.last_good.onnx")
    assert all(np.isfinite(np.asarray(v.const_value.numpy())).all() for v in load(good).graph.initializers.values() if v.const_value)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "no checkpoint was kept" in result.stderr
    assert "--checkpoints DIR" in result.stderr
    assert not Path("out.onnx").exists()
    assert contents(here).items() >= before.items()
