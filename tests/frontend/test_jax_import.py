"""JAX functions, compared with themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gatewright.errors import MismatchError, ModelError, ToolMissing, UnsupportedOp, UsageError
from gatewright.frontend import jax_ops
from gatewright.frontend.load import load
from gatewright.frontend.ortrun import OrtSession

jax = pytest.importorskip("jax")
jnp = jax.numpy
RNG = np.random.default_rng(0)


def weights(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape) * 0.3, jnp.float32)


W1, B1, W2 = weights(16, 12), weights(12), weights(12, 4)
K1, K2, D = weights(3, 3, 2, 6), weights(3, 3, 1, 6), weights(6, 3)
Q, KV, OUT = weights(16, 16), weights(16, 32), weights(16, 16)
WX, WH, E = weights(5, 8), weights(8, 8), weights(30, 5)


def mlp(x: Any) -> Any:
    return jax.nn.softmax(jax.nn.gelu(x @ W1 + B1) @ W2)


def convolutional(x: Any) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.nn.relu(jax.lax.conv_general_dilated(x, K1, (1, 1), "SAME", dimension_numbers=numbers))
    y = jax.lax.conv_general_dilated(y, K2, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=6)
    y = jax.lax.reduce_window(jax.nn.silu(y), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.mean(y, axis=(1, 2)) @ D


def attention(x: Any) -> Any:
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    q, (k, v) = x @ Q, jnp.split(x @ KV, 2, axis=-1)
    q, k, v = (t.reshape(*t.shape[:2], 2, 8) for t in (q, k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
    mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(mask, scores, -1e9)), v)
    return mixed.reshape(x.shape) @ OUT


def recurrent(tokens: Any) -> Any:
    x = E[tokens]

    def step(h: Any, x: Any) -> tuple[Any, Any]:
        h = jnp.tanh(x @ WX + h @ WH)
        return h, h[:, :2]

    h, all_h = jax.lax.scan(step, jnp.zeros((x.shape[0], 8)), x.swapaxes(0, 1))
    return h, all_h.swapaxes(0, 1)


def odds(x: Any) -> Any:
    y = jnp.clip(jnp.floor(x * 3) % 2, 0, 1) + jnp.log1p(jnp.abs(x)) + jnp.expm1(x) ** 3
    return jnp.concatenate([y[:, ::2], jnp.flip(y, 1), jnp.cumsum(y, 1), jnp.pad(y, ((0, 0), (1, 2)))], 1), jnp.argmax(y, 1), (y > 1).any(1)


FUNCTIONS: dict[str, tuple[Callable[..., Any], Any]] = {
    "mlp": (mlp, RNG.normal(size=(3, 16)).astype(np.float32)),
    "jitted": (jax.jit(mlp), RNG.normal(size=(3, 16)).astype(np.float32)),
    "convolutional": (convolutional, RNG.normal(size=(2, 8, 8, 2)).astype(np.float32)),
    "attention": (attention, RNG.normal(size=(2, 5, 16)).astype(np.float32)),
    "recurrent": (recurrent, RNG.integers(0, 30, (2, 6)).astype(np.int32)),
    "odds": (odds, RNG.normal(size=(4, 6)).astype(np.float32)),
}


LONG = {"jitted", "recurrent", "attention"}
"""Cases that take seconds beside others that say as much."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in FUNCTIONS])
def test_equal_to_jax(name: str) -> None:
    function, x = FUNCTIONS[name]
    model = load(function, example_inputs=x)
    assert model.history[-1].action == "jax"
    assert max(model.history[-1].details["checked"]["difference"].values()) <= 1e-4
    batch = model.inputs[0].shape[0]
    found = OrtSession(model, optimize=False).run({"x": x[:batch]})
    for value, wanted in zip(found.values(), jax.tree_util.tree_leaves(function(x[:batch])), strict=True):
        np.testing.assert_allclose(value, np.asarray(wanted), rtol=1e-4, atol=1e-5)


def test_the_batch_can_be_set_and_inputs_are_several() -> None:
    x = np.ones((2, 16), np.float32)
    assert load(mlp, example_inputs=x, name="net").inputs[0].shape == (1, 16)
    assert load(mlp, example_inputs=x, dims={"batch": 5}).inputs[0].shape == (5, 16)
    model = load(lambda a, b: a * b + 1, example_inputs=(x, x))
    assert [i.name for i in model.inputs] == ["x0", "x1"]


def test_what_cannot_be_said() -> None:
    x = np.ones((2, 4), np.float32)
    with pytest.raises(UsageError, match=r"load\(f, example_inputs=\(x,\)\)"):
        load(mlp)
    with pytest.raises(ModelError, match="JAX cannot trace mlp"):
        load(mlp, example_inputs=x)
    with pytest.raises(UnsupportedOp, match=r"\(while\).*a scan of known length"):
        load(lambda x: jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: v + 1, x), example_inputs=x)
    with pytest.raises(UnsupportedOp, match="has 600 steps"):
        load(lambda x: jax.lax.scan(lambda c, _: (c * 0.9, None), x, None, length=600)[0], example_inputs=x)


def test_a_wrong_primitive_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(jax_ops.PRIMITIVES, "tanh", jax_ops.PRIMITIVES["logistic"])
    with pytest.raises(MismatchError, match=r"output 'y' of 'mlp' differs from that of JAX"):
        load(mlp, example_inputs=FUNCTIONS["mlp"][1])


def test_without_jax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(ToolMissing, match=r"pip install 'gatewright\[jax\]'"):
        load(mlp, example_inputs=np.ones((1, 16), np.float32))
