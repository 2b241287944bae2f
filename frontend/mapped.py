"""Weights that stay in their file: opened by rules that keep a model inside its folder, mapped once, and hashed on the side.

A mapped tensor is read when its values are; until then it takes no memory. The file that was checked is the file that is
mapped: it is opened once, so that nothing can be put in its place in between.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from gatewright.errors import ModelError

from .limits import Limits, tensor_bytes

Bytes = NDArray[np.uint8]

SAFELY = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""How a file is opened: not through a link put there meanwhile, nor waiting for somebody to write into a named pipe."""
_BLOCK = 16 << 20
_TRUSTING = "put a copy of it there, or if you trust the model: trust=True, on the command line --trust"


@dataclass(frozen=True)
class Identity:
    """What tells one state of a file from another."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class _Map(mmap.mmap):
    """A read-only mapping that knows what file it is of."""

    path: str
    identity: Identity


def reopened(path: Path) -> ir.Model:
    """A model that this project wrote, each file of weights mapped once. (onnx-ir maps the whole file again for every tensor in it: a few
    dozen tensors of a large file take more addresses than a contained process has.)"""
    model = ir.load(path)
    maps: dict[str, Bytes] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.length:
                file = str(tensor.path)
                if file not in maps:
                    descriptor = os.open(file, SAFELY)
                    try:
                        maps[file] = map_open(descriptor, file)
                    finally:
                        os.close(descriptor)
                value.const_value = tensor_at(
                    maps[file], tensor.offset or 0, tensor.length, tensor.dtype, tuple(tensor.shape.numpy()), tensor.name or ""
                )
    return model


@dataclass(frozen=True)
class Place:
    """Where the bytes of a mapped array lie."""

    path: str
    identity: Identity
    offset: int
    length: int


def map_open(descriptor: int, path: str) -> Bytes:
    """The whole of an open file as read-only bytes; an empty file gives none."""
    status = os.fstat(descriptor)
    if not status.st_size:
        return np.zeros(0, np.uint8)
    mapping = _Map(descriptor, 0, access=mmap.ACCESS_READ)
    mapping.path, mapping.identity = path, Identity.of(status)
    return np.frombuffer(mapping, np.uint8)


def place_of(array: NDArray[Any]) -> Place | None:
    """Where ``array`` lies in a mapped file; None where it is not a piece of one as it is."""
    base: Any = array
    while base is not None and not isinstance(base, _Map):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if base is None or not array.flags.c_contiguous or not array.nbytes:
        return None
    start = np.frombuffer(base, np.uint8).ctypes.data
    return Place(base.path, base.identity, array.ctypes.data - start, array.nbytes)


def tensor_at(data: Bytes, offset: int, length: int, dtype: ir.DataType, dims: tuple[int, ...], name: str) -> ir.TensorProtocol:
    """``length`` bytes of a mapped file as a tensor, which shares them."""
    piece = data[offset : offset + length]
    if dtype.bitwidth < 8:
        return ir.PackedTensor(piece, dtype, shape=ir.Shape(dims), name=name)
    if dtype.numpy() == np.bool_:
        # Any byte but 0 and 1 would be a bool that numpy never made.
        return ir.Tensor(piece.astype(np.bool_).reshape(dims), dtype, name=name)
    return ir.Tensor(piece.view(np.dtype(dtype.numpy()).newbyteorder("<")).reshape(dims), dtype, name=name)


class Folder:
    """A model's folder, and the files in it that its weights lie in. ``digests`` says which were opened, and what was in them.

    Close it when the model is read (it is a context manager); what was mapped stays mapped as long as somebody has it.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self._limits = limits
        self._files: dict[str, Bytes] = {}
        self._hashes: dict[str, Future[str]] = {}
        # Hashing is done beside everything else, and takes a second for a gigabyte.
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="gatewright-hash")
        self._closed = False

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._hashing.shutdown(wait=True, cancel_futures=True)

    def open(self, location: str) -> Bytes:
        """The file ``location``, mapped. Raises ModelError unless it is a plain file of this folder."""
        name, path = self._name(location)
        if name not in self._files:
            descriptor = self._open(location, path)
            try:
                data = map_open(descriptor, str(path))
            finally:
                os.close(descriptor)
            self._files[name] = data
            self._hashes[name] = self._hashing.submit(self._hash, data)
        return self._files[name]

    def tensor(self, tensor: onnx.TensorProto) -> ir.TensorProtocol:
        """An external tensor, mapped. Raises ModelError if its file does not hold it whole."""
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location, dims = fields.get("location", ""), tuple(tensor.dims)
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"tensor {tensor.name!r} holds strings as external data, which ONNX does not have")
        needed = tensor_bytes(tensor.data_type, dims)
        try:
            offset, length = int(fields.get("offset", "0")), int(fields.get("length", str(needed)))
        except ValueError:
            raise ModelError(f"tensor {tensor.name!r}: offset or length of its external data is no number") from None
        data = self.open(location)
        if offset < 0 or length != needed or offset + length > len(data):
            held = f"its external data says {length:,} at {offset:,} of {location!r}, which has {len(data):,}"
            raise ModelError(f"tensor {tensor.name!r} needs {needed:,} bytes, {held}", hint="the model and its data do not belong together")
        return tensor_at(data, offset, length, ir.DataType(tensor.data_type), dims, tensor.name)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that was opened, by its path in the folder."""
        return {name: hashed.result() for name, hashed in sorted(self._hashes.items())}

    def _hash(self, data: Bytes) -> str:
        sha = hashlib.sha256()
        for start in range(0, len(data), _BLOCK):
            if self._closed:
                break
            sha.update(data[start : start + _BLOCK].data)
        return sha.hexdigest()

    def _name(self, location: str) -> tuple[str, Path]:
        """The file's path from the folder, links followed, and its whole path. Raises ModelError for one that leads out of the folder."""
        posix, windows = PurePosixPath(location), PureWindowsPath(location)
        if not location or "\0" in location:
            raise _refused(location, "it names no file")
        if posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root:
            raise _refused(location, "the path is absolute")
        if ".." in posix.parts or ".." in windows.parts:
            raise _refused(location, "the path leaves the folder through '..'")
        root = Path(os.path.realpath(self.path))
        path = Path(os.path.realpath(root / location))
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix(), path
        if not self._limits.links:
            raise _refused(location, "it is a symbolic link out of the folder", _TRUSTING)
        return posix.as_posix(), path

    def _open(self, location: str, path: Path) -> int:
        """A descriptor of the file. What it is, is asked of what was opened, not of what lay there a moment before."""
        try:
            descriptor = os.open(path, SAFELY)
        except FileNotFoundError:
            raise ModelError(f"external data {location!r} of the model is missing", hint=f"it belongs in {self.path}") from None
        except (OSError, ValueError) as error:
            raise _refused(location, getattr(error, "strerror", None) or str(error)) from None
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and (status.st_nlink <= 1 or self._limits.links):
            return descriptor
        os.close(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(location, "it is not a plain file")
        raise _refused(location, "it has a second name (hard link), which may lie outside of the folder", _TRUSTING)


def _refused(location: str, why: str, hint: str = "it must be a plain file in the model's own folder") -> ModelError:
    return ModelError(f"external data {location!r} is refused: {why}", hint=hint)
