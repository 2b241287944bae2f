"""Metrics against hand-computed values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gatewright.errors import DataError, UsageError
from gatewright.runtime.metrics import IDENTICAL_DB, Metric, classes, metric, top1_changed

SCORES = np.asarray([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]], np.float32)
LABELS = np.asarray([1, 0, 1, 0])


def judge(name: str, output: Any, labels: Any = None, baseline: Any = None) -> float:
    labels = None if labels is None else np.asarray(labels)
    return metric(name, labels)({"y": np.asarray(output)}, labels, None if baseline is None else {"y": np.asarray(baseline)})


def test_accuracy_of_scores() -> None:
    assert judge("accuracy", SCORES, LABELS) == 0.75
    assert judge("accuracy", SCORES[:, :, None, None], LABELS) == 0.75
    assert judge("accuracy", SCORES, LABELS[:, None]) == 0.75
    assert judge("accuracy", SCORES, LABELS.astype(np.float64)) == 0.75
    assert judge("accuracy", SCORES, np.eye(3, dtype=np.int64)[LABELS]) == 0.75


def test_scores_that_are_none_are_wrong() -> None:
    """The argmax of NaN is the first NaN's place, which may well be the label."""
    scores = np.array([[np.nan, 1], [1, 0]], np.float32)
    assert judge("accuracy", scores, [0, 0]) == 0.5
    assert judge("accuracy", np.array([np.nan, 0.0], np.float32), [0, 0]) == 0.5


def test_accuracy_of_quantized_scores_and_of_labels() -> None:
    assert judge("accuracy", (SCORES * 100).astype(np.int8), LABELS) == 0.75
    assert judge("accuracy", np.asarray([1, 0, 2, 0]), LABELS) == 0.75
    assert judge("accuracy", np.asarray([[1], [0], [2], [0]]), LABELS) == 0.75
    assert judge("accuracy", np.asarray(["cat", "dog"]), np.asarray(["cat", "cat"])) == 0.5


def test_accuracy_of_one_score_has_a_threshold() -> None:
    assert judge("accuracy", np.float32([[0.2], [0.8]]), [0, 1]) == 1.0
    assert judge("accuracy", np.float32([-3.0, 0.2]), [0, 1]) == 1.0
    assert judge("accuracy", np.float32([0.2, 0.3]), [0, 1]) == 0.5


def test_segmentation_is_judged_per_pixel() -> None:
    output = np.zeros((1, 2, 2, 2), np.float32)
    output[0, 1, 0, :] = 1
    assert judge("accuracy", output, np.asarray([[[1, 1], [1, 0]]])) == 0.75


def test_top5() -> None:
    scores = np.tile(np.arange(10, dtype=np.float32), (2, 1))
    assert judge("top5", scores, [5, 4]) == 0.5
    assert judge("top-5", scores, [9, 5]) == 1.0
    assert judge("top5", np.zeros((2, 10), np.float32), [4, 5]) == 0.5, "of equal scores the first win"


def test_auc() -> None:
    assert judge("auc", np.float32([0.1, 0.4, 0.35, 0.8]), [0, 0, 1, 1]) == 0.75
    assert judge("auc", np.float32([0.5, 0.5]), [0, 1]) == 0.5
    two = np.float32([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]])
    assert judge("auc", two, [0, 0, 1, 1]) == 0.75
    assert judge("auc", np.eye(3, dtype=np.float32), [0, 1, 2]) == 1.0


def test_mse_and_psnr() -> None:
    assert judge("mse", np.float32([[1.0], [3.0]]), np.asarray([1.0, 1.0])) == 2.0
    assert judge("psnr", np.zeros((1, 2, 2), np.float32), np.full((1, 2, 2), 255.0)) == pytest.approx(0.0)
    assert judge("psnr", np.zeros((1, 4), np.float32), np.full((1, 4), 0.1)) == pytest.approx(20.0)
    assert judge("psnr", np.ones((1, 4), np.float32), np.ones((1, 4))) == IDENTICAL_DB
    assert metric("mse", LABELS).drop(3.0, 1.0) == 2.0
    assert metric("accuracy", LABELS).drop(0.9, 1.0) == pytest.approx(0.1)


def test_agreement_needs_no_labels() -> None:
    other = SCORES[:, [1, 0, 2]]
    assert judge("agreement", SCORES, baseline=SCORES) == 1.0
    assert judge("agreement", SCORES, baseline=other) == 0.25
    numbers = np.linspace(0, 1, 100, dtype=np.float32)
    assert judge("agreement", numbers + np.float32(0.005), baseline=numbers) == 1.0
    assert judge("agreement", numbers + np.float32(0.02), baseline=numbers) == 0.0


def test_the_default_follows_the_labels() -> None:
    assert metric(None, LABELS).name == "accuracy"
    assert metric(None, np.asarray([0.5, 1.5])).name == "mse"
    assert metric(None, None).name == "agreement"


def test_a_named_output() -> None:
    outputs = {"a": SCORES, "b": SCORES[:, [1, 0, 2]]}
    assert metric("accuracy{output=b}", LABELS)(outputs, LABELS, None) == 0.0
    with pytest.raises(UsageError, match="output 'c'"):
        metric("accuracy{output=c}", LABELS)(outputs, LABELS, None)


def test_a_users_function() -> None:
    def worst(outputs: Any, labels: Any) -> float:
        return float(outputs["y"].min())

    found = metric(worst, None)
    assert (found.name, found({"y": SCORES}, None, None)) == ("worst", pytest.approx(0.1))
    own = Metric("own", "dB", "labels", lambda output, truth: 7.0)
    assert metric(own, None) is own


@pytest.mark.parametrize("name", ["accuracy", "top5", "auc", "mse", "psnr"])
def test_missing_labels_are_said(name: str) -> None:
    with pytest.raises(DataError, match="needs labels") as error:
        metric(name, None).require(None)
    assert "agreement" in str(error.value)


@pytest.mark.parametrize(
    ("name", "output", "labels"),
    [
        ("accuracy", SCORES, [1, 0, 1, 7]),
        ("accuracy", SCORES, [1, 0, 1, -1]),
        ("accuracy", SCORES, [0.5, 0, 1, 0]),
        ("accuracy", SCORES, [1, 0]),
        ("top5", np.float32([0.1, 0.2]), [0, 1]),
        ("auc", np.float32([0.1, 0.2]), [1, 1]),
        ("auc", np.float32([0.1, 0.2, 0.3]), [0, 1, 2]),
        ("mse", SCORES, LABELS),
    ],
)
def test_what_does_not_fit_is_a_data_error(name: str, output: Any, labels: Any) -> None:
    with pytest.raises(DataError):
        judge(name, output, labels)


def test_an_unknown_metric_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"accuraci.*did you mean accuracy"):
        metric("accuraci", LABELS)
    with pytest.raises(UsageError, match="no option"):
        metric("accuracy{outptu=a}", LABELS)


def test_top1_changed() -> None:
    assert top1_changed(SCORES, SCORES) == 0
    assert top1_changed(SCORES, SCORES[:, [1, 0, 2]]) == 3
    assert top1_changed(SCORES[:, 0], SCORES[:, 1]) is None, "one number per sample names no class"
    assert top1_changed(np.asarray([1, 2]), np.asarray([1, 3])) == 1
    assert top1_changed(SCORES, SCORES[:, :2]) is None
    assert classes(np.asarray([1j, 2j])) is None
