"""JAX functions that look for places, run along axes, choose, or convolve backwards: compared with themselves, in range and out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gatewright.errors import MismatchError, ModelError, UnsupportedOp
from gatewright.frontend import jax_places
from gatewright.frontend.load import load
from gatewright.frontend.reference import Reference

jax = pytest.importorskip("jax")
jnp, lax = jax.numpy, jax.lax
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 8)).astype(np.float32)
CUBE = RNG.normal(size=(2, 5, 6)).astype(np.float32)
WHOLE = RNG.integers(-40, 40, (3, 8)).astype(np.int32)
IMAGE = RNG.normal(size=(2, 5, 6, 4)).astype(np.float32)
AT = np.array([[0, 7], [2, -1], [9, 3]], np.int32)
"""Two of these are out of the range of 8 elements, counted from the front or the back."""
NHWC = ("NHWC", "HWIO", "NHWC")
KERNEL, GROUPED = (RNG.normal(size=shape).astype(np.float32) for shape in ((3, 2, 4, 6), (3, 3, 2, 6)))


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "a column": (lambda x: x[:, jnp.argmax(x[0])], (X,)),
    "several columns": (lambda x, i: x[:, i], (X, AT % 8)),
    "points": (lambda x, i: x[i[:, 0], i[:, 1]], (X, np.array([[0, 7], [2, 1], [1, 3]], np.int32))),
    "points of inner axes": (lambda x, i: x[:, i, i], (CUBE, np.array([1, 4], np.int32))),
    "points of outer axes": (lambda x, i: x[i, :, i], (CUBE, np.array([1, 0, 1], np.int32))),
    "beyond, filled": (lambda x, i: x.at[:, i].get(mode="fill"), (X, AT)),
    "beyond, of whole numbers": (lambda x, i: x.at[:, i].get(mode="fill"), (WHOLE, AT)),
    "beyond, with zeros": (lambda x, i: x.at[i, 1].get(mode="fill", fill_value=0), (X, np.array([1, 5, 2], np.int32))),
    "beyond, clipped": (lambda x, i: x.at[:, i].get(mode="clip"), (X, AT)),
    "along an axis": (lambda x: jnp.take_along_axis(x, jnp.argsort(-x, 1), 1), (X,)),
    "windows": (lambda x, i: jax.vmap(lambda start: lax.dynamic_slice(x, (0, start), (2, 3)))(i), (X, np.array([0, 6, 4], np.int32))),
    "windows of each": (lambda x, i: jax.vmap(lambda row, s: lax.dynamic_slice(row, (s,), (3,)))(x, i), (X, np.array([0, 6, 4], np.int32))),
    "set": (lambda x, i: x.at[:, i].set(5.0), (X, np.array([1, 4], np.int32))),
    "set, some beyond": (lambda x, i: x.at[i].set(-x[:1]), (X, np.array([1, 4], np.int32))),
    "added twice": (lambda x, i: x.at[i].add(x), (X, np.array([1, 1, 2], np.int32))),
    "added, some beyond": (lambda x, i: x.at[:, i].add(1.0), (X, AT)),
    "multiplied": (lambda x, i: x.at[i, 2].multiply(3.0, mode="clip"), (X, np.array([0, 7], np.int32))),
    "largest": (lambda x, i: x.at[:, i].max(0.3), (X, AT)),
    "least, of whole numbers": (lambda x, i: x.at[i].min(-3), (WHOLE, np.array([2, 5], np.int32))),
    "set in each": (lambda x, i: jax.vmap(lambda row, s: row.at[s].set(9.0))(x, i), (X, np.array([0, 6, 4], np.int32))),
    "a window set": (lambda x, s: lax.dynamic_update_slice(x, -x[:2, :3], (s, s + 4)), (X, np.asarray(3, np.int32))),
    "rolled": (lambda x: jnp.roll(x, jnp.argmax(x[0])), (X,)),
    "sorted": (lambda x: (jnp.sort(x, 0), jnp.argsort(x, 1), lax.top_k(x, 3)), (WHOLE,)),
    "running": (lambda x: (jnp.cumprod(x, 1), lax.cummax(x, 0), lax.cummin(x, 1, reverse=True), lax.cumlogsumexp(x, 1)), (X,)),
    "running, whole": (lambda x: (lax.cummax(x, 1, reverse=True), jnp.cumprod(x, 0)), (WHOLE,)),
    "one of two": (lambda x: lax.cond(x.sum() > 0, lambda y: (y * 2, y.sum()), lambda y: (y - 1, y.min()), x), (X,)),
    "one of three": (lambda x, i: lax.switch(i, [jnp.sin, lambda y: y * y, lambda y: -y], x), (X, np.asarray(1, np.int32))),
    "angles": (lambda x: jnp.arctan2(x[:, :4], x[:, 4:]) + jnp.arctan2(x[:, :4], 0 * x[:, 4:]) + jnp.cbrt(x[:, :4]), (X,)),
    "shifts": (lambda x: ((x << 2) + (x >> 1), x.astype(jnp.uint32) >> 3), (WHOLE,)),
    "halves": (lambda x: lax.round(jnp.round(x * 4) / 2, lax.RoundingMethod.AWAY_FROM_ZERO) + jnp.exp2(x) * jnp.isfinite(x), (X,)),
    "spread": (lambda x: lax.pad(x, np.float32(7), ((1, -1, 1), (-2, 3, 2))), (X,)),
    "tiles": (lambda x: jnp.stack([*jnp.unstack(jnp.tile(x, (2, 1)))][::2], 1), (X,)),
    "a norm": (lambda x: jax.nn.logsumexp(x, -1) + jnp.linalg.norm(jax.nn.standardize(x), axis=-1), (X,)),
    "transposed": (lambda x: lax.conv_transpose(x, KERNEL, (2, 3), "SAME", dimension_numbers=NHWC), (IMAGE,)),
    "transposed, whole": (lambda x: lax.conv_transpose(x, KERNEL, (2, 1), "VALID", rhs_dilation=(2, 1), dimension_numbers=NHWC), (IMAGE,)),
    "transposed in groups": (
        lambda x: lax.conv_general_dilated(x, GROUPED, (2, 1), ((1, 2), (0, 3)), (2, 3), dimension_numbers=NHWC, feature_group_count=2),
        (IMAGE,),
    ),
    "cut before it convolves": (
        lambda x: lax.conv_general_dilated(x, KERNEL, (1, 1), ((-1, 2), (1, -1)), dimension_numbers=NHWC), (IMAGE,),
    ),
    "bytes": (lambda x: lax.dot(x.astype(jnp.int8), x.T.astype(jnp.int8), preferred_element_type=jnp.int32), (WHOLE,)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_to_jax(name: str) -> None:
    function, given = FUNCTIONS[name]
    model = load(function, example_inputs=given)
    batch = model.inputs[0].shape[0] if len(given) == 1 else None
    given = given if batch is None else (given[0][:batch],)
    wanted = jax.tree_util.tree_leaves(function(*map(jnp.asarray, given)))
    found = Reference(model).run(dict(zip((i.name for i in model.inputs), given, strict=True)))
    for value, right in zip(found.values(), wanted, strict=True):
        assert value.dtype == right.dtype
        np.testing.assert_allclose(value, np.asarray(right), rtol=1e-4, atol=1e-5)


def test_a_place_too_far_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places that are out of range count: without the mask they would read what is nearest."""
    monkeypatch.setattr(jax_places._Windows, "inside", lambda self, shape: None)
    function, given = FUNCTIONS["beyond, with zeros"]
    with pytest.raises(MismatchError):
        load(function, example_inputs=given)


def test_what_has_no_form_says_where() -> None:
    with pytest.raises(UnsupportedOp, match=r"test_jax_places.py:\d+.*which gives float32\[3,8\]"):
        load(lambda x: lax.lgamma(x), example_inputs=X)
    with pytest.raises(ModelError, match="sorts by several keys"):
        load(lambda x: lax.sort([x, x], num_keys=2), example_inputs=X)
