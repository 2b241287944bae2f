"""Reading the files that a ``Dataset`` comes from: .npz, .npy, .csv, .parquet, folders of images. Never unpickles."""

from __future__ import annotations

import tokenize
import zipfile
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import DataError, ToolMissing

Array = NDArray[Any]

LABELS = ("y", "labels", "label", "Y")
"""Names under which labels are found without being told."""
PARTS = ("train", "test", "val", "valid", "validation", "dev", "calib", "calibration")
"""Endings that mark one of several parts of a dataset in a file: X_train."""
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


_STUMBLES = (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, MemoryError, SyntaxError, tokenize.TokenError)
"""What numpy and pandas raise over a damaged file; the last two over the header of an array, which numpy reads as a literal of Python."""
_BOMB_BYTES = 4 << 30
_BOMB_RATIO = 200


class Samples(Protocol):
    """An array, or something that is read when it is sliced (images): axis 0 is the samples."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, index: Any, /) -> Any: ...


def read(
    path: Path, *, labels: str | None = None, part: str | None = None, columns: Iterable[str] = (), size: tuple[int, int] | None = None
) -> tuple[dict[str, Samples], Array | None]:
    """Arrays by name, and labels or None. ``columns``: columns of a table that are arrays of their own, not part of X."""
    if not path.exists():
        raise DataError(f"there is no data file {path}")
    if path.is_dir():
        return _images(path, size)
    readers = {".npz": _npz, ".npy": _npy, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"cannot read {path}: data comes as {', '.join(readers)} or as a folder of images")
    if size is not None:
        raise DataError(f"size= resizes images, {path} is none")
    try:
        found = reader(path, frozenset(columns))
    except _STUMBLES as error:
        raise DataError(f"cannot read {path}: {error}", hint="the file is damaged, or not what its name says") from None
    return _parted(found, path, labels, part)


def _parted(found: dict[str, Array], path: Path, labels: str | None, part: str | None) -> tuple[dict[str, Samples], Array | None]:
    """The arrays of one part, without its ending, and its labels."""
    parts: dict[str, dict[str, Array]] = {}
    for name, array in found.items():
        stem, _, ending = name.rpartition("_")
        known = stem and (ending == part or ending in PARTS)
        parts.setdefault(ending if known else "", {})[stem if known else name] = array
    if (part or "") not in parts:
        has = ", ".join(sorted(p for p in parts if p)) or "none"
        lacks = f"part {part!r}" if part else "arrays outside of its parts"
        raise DataError(f"{path} has no {lacks}; its parts: {has}", hint="part=train takes X_train and y_train")
    chosen = parts[part or ""]
    if labels is not None and labels not in chosen:
        raise DataError(f"{path} has no labels {labels!r}; it has {', '.join(chosen)}")
    key = labels if labels is not None else next((name for name in LABELS if name in chosen), None)
    targets = chosen.pop(key) if key is not None else None
    if not chosen:
        raise DataError(f"{path} holds labels ({key}) and nothing else", hint="name the labels with labels=")
    lead = next((name for name in ("X", "x") if name in chosen), next(iter(chosen)))
    count = chosen[lead].shape[:1]
    return {name: array for name, array in chosen.items() if array.shape[:1] == count}, targets


def _npz(path: Path, columns: frozenset[str]) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is not an archive of arrays")
        members = archive.zip.infolist() if archive.zip is not None else []
        large, packed = sum(member.file_size for member in members), sum(member.compress_size for member in members)
        if large > max(_BOMB_BYTES, _BOMB_RATIO * packed):
            raise ValueError(f"its {packed:,} bytes would unfold to {large:,}; save it with numpy.savez if that is right")
        arrays = {name: archive[name] for name in archive.files}
    strange = next((name for name, array in arrays.items() if not isinstance(array, np.ndarray)), None)
    if strange is not None:
        raise ValueError(f"its member {strange!r} is not an array")
    return arrays


def _npy(path: Path, columns: frozenset[str]) -> dict[str, Array]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is not an array")
    return {"X": array}


def _csv(path: Path, columns: frozenset[str]) -> dict[str, Array]:
    pandas = _library("pandas", ".csv")
    with open(path, encoding="utf-8", errors="strict") as file:
        first = file.readline().strip().split(",")
    headless = all(_is_number(cell) for cell in first)
    return _table(pandas.read_csv(path, header=None if headless else "infer"), columns)


def _parquet(path: Path, columns: frozenset[str]) -> dict[str, Array]:
    _library("pyarrow", ".parquet")
    return _table(_library("pandas", ".parquet").read_parquet(path, engine="pyarrow"), columns)


def _table(frame: Any, columns: frozenset[str]) -> dict[str, Array]:
    """Label columns on their own [n], wanted ``columns`` [n, 1], columns of lists [n, …], all other numbers together as X [n, columns]."""
    arrays: dict[str, Array] = {}
    plain: list[Array] = []
    for position, column in enumerate(frame.columns):
        values, name = frame.iloc[:, position].to_numpy(), str(column)
        if name in LABELS:
            arrays[name] = values.astype(str) if values.dtype.kind == "O" else values
        elif values.dtype.kind == "O" and len(values) and isinstance(values[0], np.ndarray | list):
            arrays[name] = np.stack([np.asarray(item) for item in values])
        elif values.dtype.kind not in "fiub":
            raise ValueError(f"column {name!r} does not hold numbers" + (f" (first: {values[0]!r})" if len(values) else ""))
        elif name in columns:
            arrays[name] = values[:, None]
        else:
            plain.append(values)
    return {**({"X": np.stack(plain, axis=1)} if plain else {}), **arrays}


def _images(path: Path, size: tuple[int, int] | None) -> tuple[dict[str, Samples], Array | None]:
    """uint8 [n, height, width] where all are grey, else [n, height, width, 3]; labels: the subfolder's number, in order of name."""
    folders = sorted(p for p in path.iterdir() if p.is_dir())
    groups: list[tuple[int | None, Path]] = [(i, f) for i, f in enumerate(folders)] or [(None, path)]
    files = [(label, p) for label, folder in groups for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGES]
    if not files:
        raise DataError(f"folder {path} holds no images", hint="one subfolder per class, or images alone; " + " ".join(IMAGES))
    images = Images.open([p for _, p in files], size)
    labels = np.array([label for label, _ in files], np.int64) if folders else None
    return {"X": images}, labels


class Images:
    """Image files as uint8 [n, height, width] (grey) or [n, height, width, 3].

    Indexing picks images; they are decoded where an array is asked for: ``np.asarray(images[0:8])``.
    """

    def __init__(self, files: tuple[Path, ...], shape: tuple[int, ...]) -> None:
        self._files = files
        self._sample = shape
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    @classmethod
    def open(cls, files: list[Path], size: tuple[int, int] | None) -> Images:
        """Reads every header. Raises DataError naming a file that is no image or has another size than the first."""
        pillow = _library("PIL.Image", "images")
        sizes, grey = {}, True
        for file in files:
            try:
                with pillow.open(file) as image:
                    sizes[file] = (image.height, image.width)
                    grey &= image.mode in ("1", "L")
                    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                        raise DataError(f"image {file} has pixels of type {image.mode}, not 8 bits per channel")
            except (OSError, pillow.DecompressionBombError, ValueError, SyntaxError) as error:
                raise DataError(f"cannot read image {file}: {error}") from None
        height, width = size or sizes[files[0]]
        odd = None if size else next((file for file in files if sizes[file] != (height, width)), None)
        if odd is not None:
            other = "x".join(map(str, sizes[odd]))
            raise DataError(f"images differ in size: {files[0]} is {height}x{width}, {odd} is {other}", hint="size=224x224 resizes them")
        return cls(tuple(files), (height, width) if grey else (height, width, 3))

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._files), *self._sample)

    def __getitem__(self, index: slice | Array) -> Images:
        files = self._files[index] if isinstance(index, slice) else tuple(self._files[int(i)] for i in index)
        return Images(files, self._sample)

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        pixels = np.stack([self._decode(file) for file in self._files]) if self._files else np.empty(self.shape, np.uint8)
        return pixels if dtype is None else pixels.astype(dtype)

    def _decode(self, file: Path) -> Array:
        pillow = _library("PIL.Image", "images")
        height, width = self._sample[:2]
        try:
            with pillow.open(file) as image:
                converted = image.convert("L" if len(self._sample) == 2 else "RGB")
                if converted.size != (width, height):
                    converted = converted.resize((width, height), pillow.Resampling.BILINEAR)
                return np.asarray(converted, np.uint8)
        except (OSError, pillow.DecompressionBombError, ValueError, SyntaxError) as error:
            raise DataError(f"cannot read image {file}: {error}") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _library(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        package = {"PIL.Image": "pillow"}.get(name, name)
        raise ToolMissing(f"reading {what} needs {package}, which is not installed", hint="pip install 'gatewright[data]'") from None
