"""Float kernels: elementary functions against float64, layouts and odd shapes against the reference, real models against ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from compiling import Compile
from graphs import Array, graph
from hypothesis import HealthCheck, given, settings
from strategies import feeds, float_models

from gatewright.frontend.limits import Limits
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession
from gatewright.frontend.reference import Reference
from gatewright.targets.tvm import steps
from gatewright.targets.tvm.support import OPERATORS


def random_feeds(model: Model, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)

    def values(shape: tuple[int, ...], kind: str) -> Array:
        return random.integers(0, 256, shape) if kind in "iu" else random.standard_normal(shape)

    return {info.name: values(info.shape, info.dtype.kind).astype(info.dtype) for info in model.inputs}


def error(compiled: Compile, model: Model, **options: object) -> float:
    """Largest difference to the reference, relative to the largest value of that output."""
    inputs = random_feeds(model)
    wanted, got = Reference(model).run(inputs), compiled(model, **options).run(inputs)
    assert {k: (v.shape, v.dtype) for k, v in got.items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}
    return max(float(np.max(np.abs(got[k].astype(float) - wanted[k]), initial=0) / max(np.max(np.abs(wanted[k])), 1e-30)) for k in wanted)


def test_every_supported_operator_has_a_lowering_and_none_is_idle() -> None:
    tables = {s.module: import_module(f"gatewright.targets.tvm.ops.{s.module}").LOWERINGS for s in OPERATORS.values()}
    assert {op for table in tables.values() for op in table} == set(OPERATORS)
    assert all(op in tables[support.module] for op, support in OPERATORS.items())


WIDE = np.concatenate([np.linspace(-100, 100, 3001), np.linspace(-1, 1, 999), [0.0, -0.0, 1e-30, -1e-30, 1e-5, -1e-5, 88.7, -87.3]])
TRUTH: dict[str, tuple[Callable[[Array], Array], float]] = {
    # float64 truth, and the bound in units of the last place of max(|result|, 1e-30)
    "Exp": (np.exp, 4), "Tanh": (np.tanh, 6), "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 6),
    "Erf": (lambda x: np.vectorize(math.erf)(x), 12), "Softplus": (lambda x: np.logaddexp(0, x), 12),
    "Elu": (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), 12), "Sinh": (np.sinh, 8), "Cosh": (np.cosh, 8),
    "Mish": (lambda x: x * np.tanh(np.logaddexp(0, x)), 16), "Asinh": (np.arcsinh, 4), "Atanh": (np.arctanh, 8),
}  # fmt: skip


@pytest.mark.parametrize("op", ["Softplus", "Elu", "Sinh", "Atanh"])
def test_functions_of_doubles_keep_their_digits_near_zero(compiled: Compile, op: str) -> None:
    x = np.concatenate([-np.logspace(-18, -0.1, 60), np.logspace(-18, -0.1, 60)]).reshape(1, -1)
    model = graph(f"(double[1,{x.size}] x) => (double[1,{x.size}] y) {{ y = {op}(x) }}")
    np.testing.assert_allclose(compiled(model).run({"x": x})["y"], TRUTH[op][0](x), rtol=1e-14)


FORMS = {
    op: f"y = {op}(x)" for op in (
        "Abs", "Neg", "Ceil", "Floor", "Round", "Sign", "Relu", "Sigmoid", "Tanh", "Erf", "Softplus", "Softsign", "HardSwish",
        "HardSigmoid", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sin", "Mish", "Gelu", "Reciprocal", "Atan", "Asinh",
    )
} | {
    "Clip": "y = Clip(x, low, high)", "Max": "y = Max(x, low)", "Max_flipped": "y = Max(low, x)", "Min": "y = Min(x, low)",
    "Quantize": "q = QuantizeLinear(x, step, zero) y = DequantizeLinear(q, step, zero)",
}  # fmt: skip
"""Of x, which holds what is no number."""


@pytest.mark.parametrize("dtype", ["float", "float16", "double"])
def test_what_is_no_number_stays_none(compiled: Compile, dtype: str) -> None:
    kind = {"float": np.float32, "float16": np.float16, "double": np.float64}[dtype]
    x = np.array([[np.nan, np.inf, -np.inf, -0.0, 0.0, 1.5, -2.5, 30.0, 300.0]], kind)
    forms = {name: text for name, text in FORMS.items() if dtype == "float" or name not in ("Celu", "Quantize")}
    body = " ".join(text.replace("y =", f"{name} =") for name, text in forms.items())
    outputs = ", ".join(f"{dtype}[1,9] {name}" for name in forms)
    model = graph(
        f"({dtype}[1,9] x) => ({outputs}) {{ {body} }}", low=np.asarray(-1, kind), high=np.asarray(1, kind), step=np.asarray(0.5, kind),
        zero=np.int8(7),
    )  # fmt: skip
    with np.errstate(all="ignore"):
        wanted = Reference(model).run({"x": x})
    got = compiled(model).run({"x": x})
    for name in forms:
        np.testing.assert_allclose(got[name], wanted[name], rtol=4 * np.finfo(kind).eps + 2e-6, atol=1e-6, err_msg=name)


def test_functions_of_half_precision(compiled: Compile) -> None:
    """The C library has none."""
    ops = ("Acos", "Asin", "Atan", "Acosh", "Asinh", "Atanh", "Sinh", "Cosh", "Tan", "Mish")
    body = " ".join(f"{op}_ = {op}({'z' if op == 'Acosh' else 'x'})" for op in ops)
    outputs = ", ".join(f"float16[1,40] {op}_" for op in ops)
    model = graph(f"(float16[1,40] x, float16[1,40] z) => ({outputs}) {{ {body} }}")
    x = np.linspace(-0.9, 0.9, 40).astype(np.float16)[None]
    inputs = {"x": x, "z": (x + 2).astype(np.float16)}
    got, wanted = compiled(model).run(inputs), Reference(model).run(inputs)
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=2e-3, atol=2e-4, err_msg=name)


def test_booleans_are_compared(compiled: Compile) -> None:
    body = "{ a = Greater(x, o) b = Greater(z, o) y = Equal(a, b) u = Xor(a, b) }"
    model = graph(f"(float[1,8] x, float[8,1] z) => (bool[8,8] y, bool[8,8] u) {body}", o=np.float32(0))
    assert error(compiled, model) == 0


@pytest.mark.parametrize("op", TRUTH)
def test_elementary_functions(compiled: Compile, op: str) -> None:
    truth, ulps = TRUTH[op]
    # Below −87 e^x is 0, of which Mish takes a multiple.
    within = {"Atanh": np.abs(WIDE) < 1, "Mish": WIDE > -80}.get(op, np.ones(len(WIDE), bool))
    x = WIDE[within].astype(np.float32).reshape(1, -1)
    model = graph(f"(float[1,{x.size}] x) => (float[1,{x.size}] y) {{ y = {op}(x) }}")
    with np.errstate(over="ignore"):
        wanted = truth(x.astype(np.float64))
    got = compiled(model).run({"x": x})["y"].astype(np.float64)
    # Above float32's largest number infinity is right; below its smallest normal one anything that small is.
    limits = np.finfo(np.float32)
    big, tiny = np.abs(wanted) > limits.max, np.abs(wanted) < limits.tiny
    assert np.all(np.isinf(got[big]))
    assert np.all(np.abs(got[tiny]) <= limits.tiny)
    rest = ~big & ~tiny
    unit = np.spacing(np.abs(wanted[rest]).astype(np.float32)).astype(np.float64)
    assert float(np.max(np.abs(got[rest] - wanted[rest]) / unit)) <= ulps


CONVOLUTIONS = [
    # channels, filters, height, width, kernel, strides, dilations, pads, groups
    (3, 8, 13, 17, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
    (16, 32, 14, 14, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
    (32, 16, 7, 7, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1),
    (16, 16, 11, 11, (3, 3), (2, 2), (1, 1), (0, 0, 1, 1), 1),
    (8, 24, 20, 53, (5, 3), (1, 2), (1, 1), (2, 1, 2, 1), 1),
    (16, 10, 9, 9, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2), 1),
    (6, 1, 9, 9, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
    (32, 32, 12, 12, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 32),
    (24, 24, 12, 12, (5, 5), (2, 2), (1, 1), (2, 2, 2, 2), 24),
    (10, 20, 8, 8, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 10),
    (32, 64, 8, 8, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 4),
    (12, 36, 6, 6, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 3),
    (96, 48, 5, 5, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 2),
    (48, 48, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 2),
    (6, 6, 8, 8, (3, 3), (1, 1), (1, 1), (0, 1, 2, 0), 2),
    (1, 16, 10, 10, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions(compiled: Compile, case: tuple[Any, ...]) -> None:
    """Between two others, so that blocked layouts come in and go out."""
    channels, filters, height, width, kernel, strides, dilations, pads, groups = case
    random = np.random.default_rng(1)
    named = {"kernel_shape": list(kernel), "strides": list(strides), "dilations": list(dilations), "pads": list(pads), "group": groups}
    attributes = ", ".join(f"{name} = {value}" for name, value in named.items())
    model = graph(
        f"(float[2,{channels},{height},{width}] x) => (float[N,C,H,W] y) {{ a = Conv<kernel_shape = [1, 1]>(x, u) b = Relu(a) "
        f"c = Conv<{attributes}>(b, w, bias) d = Sigmoid(c) y = Conv<kernel_shape = [1, 1]>(d, v) }}",
        u=random.standard_normal((channels, channels, 1, 1)).astype(np.float32) / 4,
        w=random.standard_normal((filters, channels // groups, *kernel)).astype(np.float32) / 4,
        bias=random.standard_normal(filters).astype(np.float32),
        v=random.standard_normal((3, filters, 1, 1)).astype(np.float32) / 4,
    )
    assert error(compiled, model) < 1e-5


DENSE = [(1, 1, 1), (1, 64, 10), (1, 100, 640), (7, 33, 130), (128, 96, 48), (13, 5, 16), (64, 1, 8)]
PRODUCTS = [((2, 3, 5, 7), (2, 3, 7, 20)), ((5, 7), (7, 9)), ((1, 4, 16, 8), (2, 1, 8, 16)), ((3, 6, 4), (4, 33))]


@pytest.mark.parametrize(("rows", "depth", "columns"), DENSE)
def test_dense(compiled: Compile, rows: int, depth: int, columns: int) -> None:
    random = np.random.default_rng(2)
    model = graph(
        f"(float[{rows},{depth}] x) => (float[{rows},{columns}] y) {{ a = MatMul(x, w) b = Add(a, c) y = Tanh(b) }}",
        w=random.standard_normal((depth, columns)).astype(np.float32), c=random.standard_normal(columns).astype(np.float32),
    )  # fmt: skip
    assert error(compiled, model) < 1e-5


@pytest.mark.parametrize(("a", "b"), PRODUCTS)
def test_products_of_activations(compiled: Compile, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    result = (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])
    model = graph(f"(float{list(a)} x, float{list(b)} z) => (float{list(result)} y) {{ y = MatMul(x, z) }}")
    assert error(compiled, model) < 1e-5


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(model=float_models(max_steps=6))
def test_random_graphs(compiled: Compile, model: Model) -> None:
    inputs = feeds(model, 3)
    wanted, got = Reference(model).run(inputs), compiled(model).run(inputs)
    for name, array in wanted.items():
        assert np.max(np.abs(got[name] - array)) <= 1e-4 * max(1e-3, float(np.max(np.abs(array))))


def test_concats_in_place(compiled: Compile) -> None:
    """Densely connected: every feature map lies in the last concat's buffer."""
    random = np.random.default_rng(0)
    body = "a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w0) "
    weights = {"w0": random.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12}
    last = "a"
    for i in range(1, 4):
        body += f"n{i} = Conv<kernel_shape = [1, 1]>({last}, w{i}) r{i} = Relu(n{i}) c{i} = Concat<axis = 1>({last}, r{i}) "
        weights[f"w{i}"] = random.standard_normal((16, 16 * i, 1, 1)).astype(np.float32) / 4
        last = f"c{i}"
    model = graph(f"(float[1,16,9,9] x) => (float[1,64,1,1] y) {{ {body} y = GlobalAveragePool({last}) }}", **weights)
    assert error(compiled, model) < 1e-5


def test_batches_are_cut_and_padded(compiled: Compile) -> None:
    model = graph("(float[1,8] x) => (float[1,4] y) { a = MatMul(x, w) y = Softmax(a) }", w=np.eye(8, 4, dtype=np.float32))
    x = np.random.default_rng(0).standard_normal((7, 8)).astype(np.float32)
    one, three = compiled(model), compiled(model, batch=3)
    assert three.batch == 3
    assert np.allclose(one.run({"x": x})["y"], three.run({"x": x})["y"], atol=1e-6)


FLOAT_MODELS = [
    "mnist_cntk", "tiny_ad01_fp32", "tiny_ic_resnet8_fp32", "tiny_kws_dscnn_fp32", "tiny_vww_fp32", "tflm_sine", "oww_okay_nabu",
    "skl_digits_mlp", "speech_embedding", "skl_wine_svc_prob",
]  # fmt: skip


@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_real_models(compiled: Compile, shared_model: Callable[[str], Path], name: str) -> None:
    model = load(shared_model(f"{name}.onnx"))
    inputs = random_feeds(model)
    wanted, got = OrtSession(model).run(inputs), compiled(model).run(inputs)
    for output, array in wanted.items():
        if array.dtype.kind == "f":
            assert np.max(np.abs(got[output] - array)) <= 1e-4 * np.max(np.abs(array))
        else:
            assert np.array_equal(got[output], array)


LARGE: dict[str, dict[str, int]] = {
    "basic_pitch": {}, "doc_orientation": {}, "magika_v3_3": {}, "melspectrogram": {"samples": 16000}, "ultraface_slim320_nopost": {},
    "ppocrv4_det": {"p2o.DynamicDimension.1": 160, "p2o.DynamicDimension.2": 160},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_larger_real_models(compiled: Compile, shared_model: Callable[[str], Path], name: str) -> None:
    model = load(shared_model(f"{name}.onnx"), dims=LARGE[name])
    inputs = random_feeds(model)
    wanted, got = OrtSession(model).run(inputs), compiled(model).run(inputs)
    for output, array in wanted.items():
        # ONNX Runtime's sigmoid and tanh are absolutely, not relatively, accurate: far out they give 0 for 1e-7.
        assert np.max(np.abs(got[output] - array)) <= 2e-4 * np.max(np.abs(array)) + 1e-6


def test_a_constant_too_large_to_fold_is_made_when_it_runs(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of networks without weights (onnx's light ones): a number, repeated through a product's whole matrix."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x) => (float[2,3] y, float[5] z)
        <int64[2] s = {4, 3}, int64[1] t = {5}>
        { w = ConstantOfShape <value = float[1] {0.5}> (s)  y = MatMul(x, w)  z = ConstantOfShape (t) }"""
    model = load(onnx.parser.parse_model(text), limits=Limits(folded_bytes=4))
    assert [node.op_type for node in model.graph].count("ConstantOfShape") == 2
    monkeypatch.setattr(steps, "FOLD_LIMIT", 4)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    found = compiled(model).run({"x": x})
    np.testing.assert_allclose(found["y"], x @ np.full((4, 3), 0.5, np.float32))
    np.testing.assert_array_equal(found["z"], np.zeros(5, np.float32))


@pytest.mark.parametrize("sequence", [576, 288])
def test_both_branches_of_a_real_model(compiled: Compile, shared_model: Callable[[str], Path], sequence: int) -> None:
    """A voice detector for two rates: at each of them the network of that rate, and for each length of its input."""
    model = load(shared_model("silero_vad_ifless.onnx"), dims={"sequence": sequence})
    executor, original = compiled(model), onnxruntime.InferenceSession(str(shared_model("silero_vad_ifless.onnx")))
    rng = np.random.default_rng(0)
    sound, state = rng.normal(0, 0.1, (1, sequence)).astype(np.float32), rng.normal(size=(2, 1, 128)).astype(np.float32)
    for rate in (16000, 8000):
        inputs = {"input": sound, "state": state, "sr": np.asarray(rate)}
        found, wanted = executor.run(inputs), original.run(["output", "stateN"], inputs)
        np.testing.assert_allclose(found["output"], wanted[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["stateN"], wanted[1], rtol=1e-4, atol=1e-5)
