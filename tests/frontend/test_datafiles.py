"""Reading .npz, .npy, .csv, .parquet and folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gatewright.errors import DataError, ToolMissing, UsageError
from gatewright.frontend import datafiles
from gatewright.frontend.data import Dataset, Input
from gatewright.frontend.model import TensorInfo


def test_npz_parts_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, X=np.zeros((3, 2)), y=np.arange(3), X_train=np.ones((5, 2)), y_train=np.arange(5), note=np.arange(7))
    test, train = Dataset.load(path), Dataset.load(path, part="train")
    assert (list(test.arrays), len(test)) == (["X"], 3)
    assert (list(train.arrays), len(train)) == (["X"], 5)
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 2, 3, 4]


def test_npz_without_a_bare_part_lists_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x_train=np.zeros((3, 2)), x_test=np.zeros((2, 2)))
    with pytest.raises(DataError, match="its parts: test, train"):
        Dataset.load(path)


def test_labels_by_name(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, a=np.zeros((3, 2)), target=np.arange(3))
    assert Dataset.load(path).labels is None
    assert Dataset.load(path, labels="target").labels is not None
    with pytest.raises(DataError, match="no labels 'targte'; it has a, target"):
        Dataset.load(path, labels="targte")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "sprung"),))

    np.savez(tmp_path / "d.npz", X=np.array([Trap()], dtype=object))
    with pytest.raises(DataError, match="cannot read"):
        Dataset.load(tmp_path / "d.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["d.npz", "d.npy", "d.parquet"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DataError, match="cannot read"):
        Dataset.load(path)


def test_truncated_npz(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, X=np.zeros((30, 20)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot read"):
        Dataset.load(path)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data file"):
        Dataset.load(tmp_path / "none.npz")
    (tmp_path / "d.mat").write_bytes(b"")
    with pytest.raises(DataError, match=r"data comes as \.npz, \.npy"):
        Dataset.load(tmp_path / "d.mat")


def test_npy_is_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.arange(12.0).reshape(4, 3))
    data = Dataset.load(tmp_path / "d.npy", range="1:3")
    assert isinstance(data.arrays["X"], np.memmap)
    np.testing.assert_array_equal(data.inputs["X"], [[3, 4, 5], [6, 7, 8]])


@pytest.mark.parametrize("text", ["1", "a:b", "1:2:3"])
def test_bad_range(tmp_path: Path, text: str) -> None:
    np.save(tmp_path / "d.npy", np.zeros((4, 3)))
    with pytest.raises(UsageError, match="is not start:stop"):
        Dataset.load(tmp_path / "d.npy", range=text)


def test_csv_with_and_without_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("w,h,label\n1,2.5,cat\n3,4,dog\n")
    (tmp_path / "b.csv").write_text("1,2\n3,4\n")
    a, b = Dataset.load(tmp_path / "a.csv"), Dataset.load(tmp_path / "b.csv")
    np.testing.assert_array_equal(a.inputs["X"], [[1, 2.5], [3, 4]])
    assert a.labels is not None
    assert a.labels.tolist() == ["cat", "dog"]
    np.testing.assert_array_equal(b.inputs["X"], [[1, 2], [3, 4]])
    assert b.arrays["X"].dtype == np.int64


def test_csv_column_as_an_input_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,w,h\n1,2,3\n4,5,6\n")
    data = Dataset.load(tmp_path / "a.csv", inputs={"years": Input(source="age"), "rest": Input(source="X")})
    feeds = data.feeds([TensorInfo("years", (1, 1), np.dtype(np.float32)), TensorInfo("rest", (1, 2), np.dtype(np.float32))])
    np.testing.assert_array_equal(feeds["years"], [[1], [4]])
    np.testing.assert_array_equal(feeds["rest"], [[2, 3], [5, 6]])


def test_csv_with_words_names_the_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("w,colour\n1,red\n")
    with pytest.raises(DataError, match=r"column 'colour' does not hold numbers \(first: 'red'\)"):
        Dataset.load(tmp_path / "a.csv")


def test_parquet_with_lists(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"image": [[1.0, 2.0], [3.0, 4.0]], "y": [0, 1]})
    frame.to_parquet(tmp_path / "d.parquet")
    data = Dataset.load(tmp_path / "d.parquet")
    np.testing.assert_array_equal(data.inputs["image"], [[1, 2], [3, 4]])
    assert data.labels is not None


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    (tmp_path / "a.csv").write_text("1,2\n")
    monkeypatch.setattr(datafiles, "import_module", missing)
    with pytest.raises(ToolMissing, match=r"needs pandas.*gatewright\[data\]"):
        Dataset.load(tmp_path / "a.csv")


class TestImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        image = pytest.importorskip("PIL.Image")
        for label, shade in (("cat", 10), ("dog", 200)):
            (tmp_path / label).mkdir()
            for i in range(3):
                pixels = np.full((4, 6, 3), shade + i, np.uint8)
                image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
        return tmp_path

    def test_classes_are_subfolders(self, folder: Path) -> None:
        data = Dataset.load(folder)
        assert str(data).startswith(folder.name)
        assert data.arrays["X"].shape == (6, 4, 6, 3)
        assert data.labels is not None
        assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
        np.testing.assert_array_equal(data.inputs["X"][:, 0, 0, 0], [10, 11, 12, 200, 201, 202])

    def test_images_are_decoded_only_where_used(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = Dataset.load(folder, inputs={"x": Input(layout="NHWC->NCHW")})
        decoded = []
        original = datafiles.Images._decode
        monkeypatch.setattr(datafiles.Images, "_decode", lambda self, file: (decoded.append(file), original(self, file))[1])
        part = data.shuffled(3).slice(1, 3)
        assert not decoded
        batch = next(iter(part.batches([TensorInfo("x", (1, 3, 4, 6), np.dtype(np.float32))], 1)))
        assert len(decoded) == 1
        assert batch["x"].shape == (1, 3, 4, 6)

    def test_different_sizes(self, folder: Path) -> None:
        image = pytest.importorskip("PIL.Image")
        image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "dog" / "big.png")
        with pytest.raises(DataError, match=r"images differ in size.*size=224x224"):
            Dataset.load(folder)
        assert Dataset.parse(f"{folder}{{size=5x7}}").inputs["X"].shape == (7, 5, 7, 3)

    def test_a_broken_image_is_named(self, folder: Path) -> None:
        (folder / "dog" / "0.png").write_bytes(b"nothing")
        with pytest.raises(DataError, match=r"cannot read image .*0\.png"):
            Dataset.load(folder)

    def test_no_images(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds no images"):
            Dataset.load(tmp_path)
