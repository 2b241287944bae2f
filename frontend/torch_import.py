"""PyTorch modules: exported by torch.onnx (dynamo), made canonical, and compared with the module itself on the example inputs."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gatewright.errors import ModelError, UsageError

from .batch import batch_reason, with_batch
from .importing import Imported, finish, need, trusted
from .limits import Limits
from .model import Model

Array = NDArray[Any]


def from_torch(
    module: Any, example_inputs: Any, *, dims: Mapping[str, int] | None = None, name: str | None = None, limits: Limits | None = None
) -> Model:
    """A torch.nn.Module as a canonical model.

    ``example_inputs``: the tensor, or the tuple of tensors, that ``forward`` takes. Where the model keeps samples apart its
    batch becomes 1, or ``dims={"batch": n}``; the other sizes stay those of the examples. Raises ModelError if torch cannot export
    it, MismatchError naming the worst output if the result differs from the module on the examples.
    """
    torch = _torch()
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"a {type(module).__name__} is no torch.nn.Module", hint="wrap the function in a module")
    arguments = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not arguments or not all(isinstance(a, torch.Tensor) for a in arguments):
        raise UsageError("a torch module needs example_inputs, a tensor or a tuple of tensors", hint="load(module, example_inputs=(x,))")
    stray = sorted(set(dims or {}) - {"batch"})
    if stray:
        raise UsageError(f"the model has no dynamic axis {stray[0]!r}", hint="its sizes are those of example_inputs; only batch can be set")
    was_training = module.training
    module.eval()
    try:
        expected = _expected(torch, module, arguments)
        proto = _export(torch, module, arguments)
    finally:
        module.train(was_training)
    title = name or type(module).__name__
    names = [value.name for value in proto.graph.input]
    samples = dict(zip(names, (_array(a) for a in arguments), strict=True))
    imported = Imported(proto, "torch", type(module).__name__, f"PyTorch {torch.__version__}", samples, expected)
    model = finish(imported, dims=None, name=title, limits=limits)
    size = (dims or {}).get("batch", 1)
    if batch_reason(model) is None:
        return with_batch(model, size) if model.inputs[0].shape[0] != size else model
    if dims:
        raise ModelError(f"the batch of {title!r} cannot be set to {size}: {batch_reason(model)}", hint="give example_inputs of that batch")
    return model


def read_file(path: str, dims: Mapping[str, int], name: str | None, limits: Limits, trust: bool = False) -> Model:
    """A .pt2 file of torch.export, in this process. Symbolic sizes are bound by ``dims``, the first axis of the inputs to 1 unless said."""
    from .torch_file import harmless

    file = Path(path)
    torch = _torch()
    source: Any = str(file) if trust else harmless(file, limits)
    try:
        with _quiet():
            program = torch.export.load(source)
    except Exception as error:
        raise ModelError(
            f"torch {torch.__version__} cannot open {file.name}: {str(error)[:300]}", hint="write it with this version"
        ) from error
    return from_program(program, dims=dims, name=name or file.stem, limits=limits, text=file.name)


def from_program(
    program: Any, *, dims: Mapping[str, int] | None = None, name: str | None = None, limits: Limits | None = None, text: str | None = None
) -> Model:
    """A torch.export.ExportedProgram as a canonical model, compared with itself on random inputs."""
    torch = _torch()
    title = name or "program"
    specs = program.graph_signature.input_specs
    wanted = {spec.arg.name for spec in specs if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT}
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise ModelError(f"{title} takes what is no tensor", hint="export it with tensors as its only inputs")
    free = sorted({str(size) for value in values for size in value.shape if not isinstance(size, int)})
    sizes = {symbol: _SIZES[i % len(_SIZES)] for i, symbol in enumerate(free)}
    generator = torch.Generator().manual_seed(0)
    arguments = tuple(_random(torch, value, sizes, generator) for value in values)
    module = program.module()
    expected = _expected(torch, module, arguments)
    try:
        with _quiet(), torch.no_grad():
            made = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True)
    except Exception as error:
        raise ModelError(f"torch cannot export {title}: {' '.join(str(error).split())[:500]}") from error
    proto = ir.to_proto(made.model)
    samples = dict(zip((value.name for value in proto.graph.input), (_array(a) for a in arguments), strict=True))
    imported = Imported(proto, "torch", text or "ExportedProgram", f"PyTorch {torch.__version__}", samples, expected, per_sample=bool(free))
    return finish(imported, dims=dims, name=title, limits=limits)


_SIZES = (4, 6, 8)


def _random(torch: Any, value: Any, sizes: Mapping[str, int], generator: Any) -> Any:
    shape = [size if isinstance(size, int) else sizes.get(str(size), 4) for size in value.shape]
    if value.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(value.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(value.dtype)


def unpickled(path: Path, trust: bool) -> Any:
    """The module of a file written by torch.save. Raises ModelError unless it is trusted."""
    trusted(trust, str(path), "it is a pickle, which runs whatever code it holds when it is opened")
    torch = _torch()
    try:
        held = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(f"torch cannot open {path}: {type(error).__name__}: {str(error)[:300]}") from error
    if isinstance(held, dict):
        hint = "make the module in Python, load_state_dict into it and give it: load(module, example_inputs=(x,))"
        raise ModelError(f"{path} holds weights without the network that they belong to", hint=hint)
    return held


def _torch() -> Any:
    return need("torch", "torch", "a torch module")


def _expected(torch: Any, module: Any, arguments: tuple[Any, ...]) -> list[Array]:
    try:
        with torch.no_grad():
            result = module(*arguments)
    except Exception as error:
        what = f"{type(module).__name__} fails on its example_inputs"
        raise ModelError(f"{what}: {str(error)[:400]}", hint="give inputs that it takes") from None
    return _flat(torch, result)


def _export(torch: Any, module: Any, arguments: tuple[Any, ...]) -> Any:
    try:
        # What is kept for gradients gives tensors strides that torch's own decompositions stumble over.
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(module, arguments, dynamo=True, verbose=False, optimize=True)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(f"torch cannot export {type(module).__name__}: {' '.join(lines)[:500]}") from None
    return ir.to_proto(program.model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress on standard output, and warns of what does not concern a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _flat(torch: Any, result: Any) -> list[Array]:
    """Tensors of a nested result, in the order in which the exporter makes outputs of them."""
    leaves, _ = torch.utils._pytree.tree_flatten(result)
    return [_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _array(tensor: Any) -> Array:
    return np.asarray(tensor.detach().cpu().numpy())
