"""Dataset and Input: raw samples into a model's inputs, and errors that say what would fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatewright.errors import DataError, UsageError
from gatewright.frontend.data import Dataset, Input
from gatewright.frontend.model import TensorInfo

FLOAT, INT8 = np.dtype(np.float32), np.dtype(np.int8)
Shared = Callable[[str], Path]


def info(name: str, *shape: int, dtype: np.dtype[Any] = FLOAT) -> TensorInfo:
    return TensorInfo(name, shape, dtype)


def digits(n: int = 10, labels: bool = True) -> Dataset:
    raw = np.arange(n * 64, dtype=np.uint8).reshape(n, 8, 8)
    return Dataset({"X": raw}, np.arange(n) % 3 if labels else None, name="digits")


class TestInput:
    def test_arithmetic_is_offset_then_scale_in_float32(self) -> None:
        raw = np.array([[0], [83], [255]], np.uint8)
        value = Input(offset=83, scale=0.5847029).apply(raw, "x")
        expected = (raw.astype(np.float32) - np.float32(83)) * np.float32(0.5847029)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected)

    def test_reshape_comes_before_layout(self) -> None:
        raw = np.arange(2 * 12).reshape(2, 12)
        value = Input(reshape=(2, 2, 3), layout="NHWC->NCHW").apply(raw, "x")
        np.testing.assert_array_equal(value, raw.reshape(2, 2, 2, 3).transpose(0, 3, 1, 2))

    def test_per_channel_numbers_follow_the_final_layout(self) -> None:
        raw = np.ones((2, 4, 5, 3), np.float32)
        moved = Input(scale=(1, 2, 3), layout="NHWC->NCHW").apply(raw, "x")
        stayed = Input(scale=(1, 2, 3), layout="NHWC").apply(raw, "x")
        np.testing.assert_array_equal(moved[0, :, 0, 0], [1, 2, 3])
        np.testing.assert_array_equal(stayed[0, 0, 0], [1, 2, 3])
        with pytest.raises(DataError, match="3 numbers per channel"):
            Input(scale=(1, 2, 3)).apply(raw, "x")

    def test_integer_results_round_half_to_even_and_never_wrap(self) -> None:
        raw = np.array([[1, 3, 5, -1]], np.int64)
        np.testing.assert_array_equal(Input(scale=0.5, dtype="int8").apply(raw, "x"), [[0, 2, 2, 0]])
        np.testing.assert_array_equal(Input(offset=128, dtype="int8").apply(np.array([[0, 255]], np.uint8), "x"), [[-128, 127]])
        with pytest.raises(DataError, match=r"values from 0\.0 to 255\.0 do not fit int8"):
            Input(offset=0, scale=1.0, dtype="int8", source=None).apply(np.array([[0.0, 255.0]]), "x")

    def test_nan_does_not_become_an_integer(self) -> None:
        with pytest.raises(DataError, match="do not fit int8"):
            Input(dtype="int8").apply(np.array([[np.nan]]), "x")

    @pytest.mark.parametrize(
        "given",
        [
            Input(),
            Input(offset=83.0, scale=0.5847029, reshape=(49, 10, 1), layout="NHWC->NCHW", dtype="float32", source="X"),
            Input(scale=(0.25, 0.5), offset=(1.0, 2.0)),
        ],
    )
    def test_text_and_back(self, given: Input) -> None:
        assert Input.parse(given.text("input_1")) == ("input_1", given)

    def test_text_form_of_the_manual(self) -> None:
        name, given = Input.parse("input_1{offset=83,scale=0.5847029,reshape=49x10x1,layout=NHWC->NCHW,dtype=float32,source=X}")
        assert name == "input_1"
        assert given == Input(0.5847029, 83.0, "NHWC->NCHW", (49, 10, 1), "float32", "X")

    @pytest.mark.parametrize(
        "text",
        ["x{layout=NHWC->NCH}", "x{layout=HWC->CHW}", "x{reshape=0x2}", "x{dtype=float33}", "x{dtype=object}", "x{scale=nan}", "x{size=3}"],
    )
    def test_nonsense_is_a_usage_error(self, text: str) -> None:
        with pytest.raises(UsageError):
            Input.parse(text)


class TestFeeds:
    def test_floats_take_the_models_precision(self) -> None:
        data = Dataset({"x": np.ones((2, 3))})
        assert data.feeds([info("x", 1, 3)])["x"].dtype == np.float32

    def test_whole_numbers_become_floats_only_when_told(self) -> None:
        data = Dataset({"x": np.ones((2, 3), np.uint8)}, name="pixels")
        with pytest.raises(DataError) as caught:
            data.feeds([info("x", 1, 3)])
        assert "float32[N, 3]" in str(caught.value)
        assert "uint8[N, 3]" in str(caught.value)
        assert "Input()" in str(caught.value)
        told = Dataset(data.arrays, preparation={"x": Input()})
        np.testing.assert_array_equal(told.feeds([info("x", 1, 3)])["x"], np.ones((2, 3), np.float32))

    @pytest.mark.parametrize(
        ("have", "dtype", "want"),
        [
            ((28, 28), np.uint8, info("x", 1, 1, 28, 28)),
            ((784,), np.uint8, info("x", 1, 1, 28, 28)),
            ((28, 28), np.float32, info("x", 1, 784)),
            ((49, 10), np.int8, info("x", 1, 49, 10, 1, dtype=INT8)),
            ((49, 10), np.int8, info("x", 1, 49, 10, 1)),
            ((32, 32, 3), np.uint8, info("x", 1, 3, 32, 32)),
            ((3, 32, 32), np.uint8, info("x", 1, 32, 32, 3)),
            ((32, 32, 3), np.uint8, info("x", 1, 32, 32, 3, dtype=INT8)),
            ((32, 32, 3), np.float64, info("x", 1, 3, 32, 32, dtype=INT8)),
        ],
    )
    def test_the_hint_fits(self, have: tuple[int, ...], dtype: Any, want: TensorInfo) -> None:
        """The Input that an error proposes works, from Python and from the command line alike."""
        data = Dataset({"x": np.zeros((4, *have), dtype)})
        with pytest.raises(DataError) as caught:
            data.feeds([want])
        hint = caught.value.hint or ""
        text = hint.partition("--input '")[2].rstrip("'")
        name, given = Input.parse(text)
        assert given.code() in hint
        feeds = Dataset(data.arrays, preparation={name: given}).feeds([want])
        assert feeds["x"].shape == (4, *want.shape[1:])
        assert feeds["x"].dtype == want.dtype

    def test_a_missing_axis_is_never_added_in_silence(self) -> None:
        with pytest.raises(DataError, match=r"takes float32\[N, 1, 8, 8\].*is float32\[N, 8, 8\]"):
            Dataset({"x": np.zeros((2, 8, 8), np.float32)}).feeds([info("x", 1, 1, 8, 8)])

    def test_sizes_that_cannot_fit_are_counted(self) -> None:
        with pytest.raises(DataError, match="a sample has 64 values, the input takes 784"):
            digits().feeds([info("x", 1, 784)])

    def test_one_array_and_one_input_need_not_share_a_name(self) -> None:
        assert set(Dataset({"X": np.zeros((2, 3), np.float32)}).feeds([info("input_1", 1, 3)])) == {"input_1"}

    def test_several_arrays_need_names(self) -> None:
        data = Dataset({"a": np.zeros((2, 3), np.float32), "b": np.ones((2, 3), np.float32)})
        with pytest.raises(DataError, match="no array of that name, it has a, b"):
            data.feeds([info("input_1", 1, 3)])
        named = Dataset(data.arrays, preparation={"input_1": Input(source="b")})
        assert named.feeds([info("input_1", 1, 3)])["input_1"].all()

    def test_a_preparation_for_no_input_is_an_error(self) -> None:
        data = Dataset({"X": np.zeros((2, 3), np.float32)}, preparation={"inptu": Input()})
        with pytest.raises(DataError, match="the model has no input 'inptu'"):
            data.feeds([info("input", 1, 3)])

    def test_batches_are_the_feeds_in_pieces(self) -> None:
        data = Dataset(digits().arrays, preparation={"x": Input(scale=0.5, reshape=(64,))})
        pieces = list(data.batches([info("x", 1, 64)], 4))
        assert [len(piece["x"]) for piece in pieces] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate([piece["x"] for piece in pieces]), data.feeds([info("x", 1, 64)])["x"])


class TestParts:
    def test_split_holds_each_sample_out_once_and_spreads_classes(self) -> None:
        data = digits(30)
        folds = data.split(5)
        held = np.concatenate([np.asarray(out.arrays["X"])[:, 0, 0] for _, out in folds])
        assert sorted(held) == sorted(np.asarray(data.arrays["X"])[:, 0, 0])
        for train, out in folds:
            assert (len(train), len(out)) == (24, 6)
            assert out.labels is not None
            assert np.bincount(out.labels).tolist() == [2, 2, 2]
        again = data.split(5)
        assert all(a.digest == b.digest for pair, other in zip(folds, again, strict=True) for a, b in zip(pair, other, strict=True))

    @pytest.mark.parametrize("k", [0, 1, 11])
    def test_split_out_of_range(self, k: int) -> None:
        with pytest.raises(DataError, match="folds"):
            digits().split(k)

    def test_slice_take_shuffle(self) -> None:
        data = digits()
        assert len(data.slice(2, 5)) == 3
        assert len(data.take(99)) == 10
        assert data.shuffled(1).digest == data.shuffled(1).digest != data.shuffled(2).digest
        with pytest.raises(DataError, match="has samples 0 to 10, not 5:20"):
            data.slice(5, 20)

    def test_digest_covers_arrays_labels_and_preparation(self) -> None:
        data = digits()
        other = np.array(data.arrays["X"])
        other[9, 7, 7] ^= 1
        variants = [
            data,
            Dataset({"X": other}, data.labels),
            Dataset(data.arrays),
            Dataset(data.arrays, data.labels, {"x": Input(scale=2.0)}),
            Dataset({"Z": data.arrays["X"]}, data.labels),
        ]
        assert len({variant.digest for variant in variants}) == len(variants)

    def test_lengths_must_agree(self) -> None:
        with pytest.raises(DataError, match="X 3, labels 2"):
            Dataset({"X": np.zeros((3, 1))}, np.zeros(2))
        with pytest.raises(DataError, match="no samples"):
            Dataset({"X": np.zeros((0, 1))})


class TestSharedData:
    """Real files go in as they lie, from Python and from the command line's text."""

    @pytest.mark.parametrize(
        ("file", "model_input", "given"),
        [
            ("mnist_test_10k.npz", info("Input3", 1, 1, 28, 28), "Input3{reshape=1x28x28}"),
            ("mnist_train_5k.npz", info("Input3", 1, 1, 28, 28), "Input3{reshape=1x28x28}"),
            ("kws01_mfcc_int8_1000.npz", info("input_1", 1, 49, 10, 1, dtype=INT8), "input_1{reshape=49x10x1}"),
            ("kws01_mfcc_int8_1000.npz", info("input_1", 1, 49, 10, 1), "input_1{offset=83,scale=0.5847029,reshape=49x10x1}"),
            ("cifar10_recovered.npz", info("input_1", 1, 32, 32, 3), "input_1"),
            ("cifar10_recovered.npz", info("input_1", 1, 32, 32, 3, dtype=INT8), "input_1{offset=128,dtype=int8}"),
        ],
    )
    def test_prepared(self, shared_data: Shared, file: str, model_input: TensorInfo, given: str) -> None:
        path = shared_data(file)
        name, parsed = Input.parse(given)
        from_python = Dataset.load(path, inputs={name: parsed}, range=(0, 50))
        from_text = Dataset.parse(f"{path}{{range=0:50}}", [given])
        feeds = from_python.feeds([model_input])
        assert feeds[name].shape == (50, *model_input.shape[1:])
        np.testing.assert_array_equal(feeds[name], from_text.feeds([model_input])[name])
        assert from_python.digest == from_text.digest
        assert from_python.labels is not None

    def test_digits_in_two_parts(self, shared_data: Shared) -> None:
        path = shared_data("sk_digits.npz")
        assert len(Dataset.load(path)) == 540
        assert len(Dataset.parse(f"{path}{{part=train}}")) == 1257
        with pytest.raises(DataError, match="no part 'tset'; its parts: train"):
            Dataset.parse(f"{path}{{part=tset}}")

    def test_kws_numbers(self, shared_data: Shared) -> None:
        path = shared_data("kws01_mfcc_int8_1000.npz")
        data = Dataset.parse(str(path), ["input_1{offset=83,scale=0.5847029,reshape=49x10x1}"])
        raw = np.asarray(data.arrays["X"]).astype(np.float64)
        np.testing.assert_allclose(data.inputs["input_1"][..., 0], (raw - 83) * 0.5847029, rtol=1e-6, atol=1e-5)
