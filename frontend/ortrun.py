"""ONNX Runtime, for checks, calibration and constant folding. Never the definition of a model's meaning: see ``reference.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gatewright.errors import DataError, GatewrightError, ModelError

from .model import Model

Array = NDArray[Any]

_INLINE_BYTES = 1_500_000_000


class OrtSession:
    """A session on the CPU. ``optimize=False`` is the mode that cannot saturate: no fused 8-bit kernels (vpmaddubsw) without VNNI.

    ``threads``: None leaves it to ONNX Runtime. ``rewrite_qdq=False``: chains of DequantizeLinear … QuantizeLinear stay in float32;
    a Model of 4- or 16-bit activations is known to need it, a file or bytes are not looked into. Raises ModelError where it
    refuses the model.
    """

    def __init__(self, model: Model | bytes | Path, *, optimize: bool = True, threads: int | None = None, rewrite_qdq: bool = True) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        if not rewrite_qdq or (isinstance(model, Model) and _quantizes_narrowly(model)):
            # Its rewriting of QDQ chains moves MaxPool and others onto the 4- and 16-bit integers, for which it has no kernels.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Weights in blocks are fused with their product; left to itself that kernel would round the activations to 8 bits as well.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self._folder: TemporaryDirectory[str] | None = None
        source: bytes | str
        if isinstance(model, Path):
            source = str(model)
        elif isinstance(model, bytes):
            source = model
        elif sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None) <= _INLINE_BYTES:
            source = model.to_bytes()
        else:
            # Past protobuf's 2 GB a model lies in a file, its weights beside it.
            self._folder = TemporaryDirectory(prefix="gatewright-ort-")
            source = str(Path(self._folder.name) / "model.onnx")
            model.save(source)
        avoided = _harmful_optimizers(model) if isinstance(model, Model) else []
        try:
            self._session = onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"], disabled_optimizers=avoided)
        except Exception as error:
            raise ModelError(f"ONNX Runtime refuses the model: {_first_lines(error)}") from None
        self.input_names: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises DataError where the feeds do not fit the model's inputs."""
        missing = [name for name in self.input_names if name not in feeds]
        if missing:
            raise DataError(f"no array for input {missing[0]!r}; got {', '.join(feeds) or 'none'}")
        try:
            # onnxruntime reads the memory as it lies, whatever the strides say.
            results = self._session.run(None, {name: np.asarray(feeds[name], order="C") for name in self.input_names})
        except Exception as error:
            kind = type(error).__name__
            if kind == "InvalidArgument":
                raise DataError(f"the arrays do not fit the model: {_first_lines(error)}") from None
            raise GatewrightError(f"ONNX Runtime failed: {_first_lines(error)}") from None
        return dict(zip(self.output_names, results, strict=True))

    def prepared(self, feeds: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        """A run on ``feeds`` with nothing around it, for timing; it is tried once, with the checks of ``run``."""
        self.run(feeds)
        given, names, session = {name: np.ascontiguousarray(feeds[name]) for name in self.input_names}, self.output_names, self._session
        return lambda: dict(zip(names, session.run(None, given), strict=True))


def _quantizes_narrowly(model: Model) -> bool:
    """Whether an activation is quantized to anything but 8 bits."""
    eight_bits = (ir.DataType.INT8, ir.DataType.UINT8)
    return any(node.op_type == "QuantizeLinear" and node.outputs[0].dtype not in eight_bits for node in model.graph)


def _harmful_optimizers(model: Model) -> list[str]:
    """What must not be done to this model, as of ONNX Runtime 1.31.

    It takes the transposition of an operand into the product: of one with a vector, which is then computed wrongly, and of one of
    float16, over which it ends the process. And it makes a float32 of a factor of a product of doubles.
    """
    products = [node for graph in model.ir.graphs() for node in graph if node.op_type == "MatMul" and len(node.inputs) == 2]
    rights, kinds = [node.inputs[1] for node in products], {node.outputs[0].dtype for node in products}
    vectors = any(right is not None and right.shape is not None and right.shape.rank() == 1 for right in rights)
    turned = vectors or ir.DataType.FLOAT16 in kinds
    return ["MatmulTransposeFusion"] * turned + ["MatMulScaleFusion"] * (ir.DataType.DOUBLE in kinds)


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
