"""ONNX's own node tests: every one whose operators have kernels is right, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from compiling import Compile
from graphs import Array
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from gatewright.errors import GatewrightError, UnsupportedError
from gatewright.frontend.load import load
from gatewright.targets.tvm.support import OPERATORS

ROUNDED = {"test_averagepool_2d_ceil_last_window_starts_on_pad"}
"""Its expected values are written with four digits."""


def tensors(folder: Path, kind: str) -> list[Array] | None:
    """The test's arrays; None where one is not a tensor (sequences, optionals)."""
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda file: int(file.stem.rsplit("_", 1)[1]))
    try:
        return [numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]
    except (ValueError, TypeError):
        return None


def with_constants(proto: onnx.ModelProto, inputs: list[Array]) -> None:
    """Every input but the first becomes an initializer: weights, axes and shapes as real models have them."""
    for value, array in list(zip(proto.graph.input, inputs, strict=False))[1:]:
        proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)


def equal(ours: Array, theirs: Array) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if theirs.dtype.kind != "f":
        return np.array_equal(ours, theirs)
    rtol = 2e-3 if theirs.dtype == np.float16 else 1e-4
    return np.allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=rtol, atol=1e-5, equal_nan=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("constants", [False, True], ids=["as it is", "constants"])
def test_node_tests(compiled: Compile, constants: bool) -> None:
    wrong: list[str] = []
    right = 0
    for case in load_model_tests(kind="node"):
        folder = Path(case.model_dir)
        proto: Any = onnx.load(folder / "model.onnx")
        known = all(node.op_type in {*OPERATORS, "Constant"} and not node.domain for node in proto.graph.node)
        if case.name in ROUNDED or not known:
            continue
        inputs, wanted = (tensors(folder / "test_data_set_0", kind) for kind in ("input", "output"))
        if inputs is None or wanted is None:
            continue
        names, outputs = [v.name for v in proto.graph.input], [v.name for v in proto.graph.output]
        if constants:
            with_constants(proto, inputs)
        try:
            model = load(proto)
        except GatewrightError:
            # Not a canonical model (a shape computed from an input, a type of a later opset): the importer's subject.
            continue
        try:
            executor = compiled(model)
        except UnsupportedError:
            continue
        except GatewrightError as error:
            wrong.append(f"{case.name}: {error}")
            continue
        feeds = {name: array for name, array in zip(names, inputs, strict=False) if name in {v.name for v in model.inputs}}
        got = executor.run(feeds)
        if all(equal(got[name], array) for name, array in zip(outputs, wanted, strict=False) if name in got):
            right += 1
        else:
            wrong.append(case.name)
    assert wrong == []
    assert right >= (750 if constants else 600)
