"""Bugs planted in the passes, one at a time: the checks that guard them must see each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from strategies import build, dataset, feeds
from transformer import transformer

from gatewright.errors import GatewrightError
from gatewright.frontend.integer import plan
from gatewright.frontend.reference import Reference
from gatewright.passes import affine, clamps, dependency, grids, prune_layers, qdq, quantize, rewrite
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.prune import Prune, masked
from gatewright.passes.verify import relative_error, tolerance

Patch = pytest.MonkeyPatch


def fuse_is_exact() -> None:
    model = build(4, ["pad_conv", "batch_norm", "max_min", "relu6", "pad_pool", "mul_channels", "sub_from", "conv_no_bias", "add_channels"])
    Pipeline.parse("fuse").run(model, verify="numeric")


def pruned_equals_masked() -> None:
    model = build(3, ["conv", "batch_norm", "relu", "residual", "join", "conv_depthwise", "conv_grouped", "reshaped", "conv"])
    pruning = Prune("channel", 0.5)
    small, silent = Pipeline((pruning,)).run(model), masked(model, pruning)
    x = feeds(model, 4)
    assert relative_error(Reference(silent).run(x)["y"], Reference(small).run(x)["y"]) <= tolerance(model)


def heads_equal_masked() -> None:
    for shape in ("bert", "packed"):
        model, x = transformer(shape)
        for pruning in (Prune("head", 0.5), Prune("layer", 0.5), Prune("neuron", 0.5)):
            small, silent = Pipeline((pruning,)).run(model), masked(model, pruning)
            assert relative_error(Reference(silent).run(x)["logits"], Reference(small).run(x)["logits"]) <= tolerance(model)


def quantized_is_near() -> None:
    """The forms that the contract promises, and outputs near to the float model's."""
    model = build(2, ["conv", "relu", "residual", "max_pool", "join", "swish"])
    q = Pipeline.parse("fuse,quantize{grid=symmetric,per=channel}").run(model, PassContext(data=dataset(model, 60)))
    for op in plan(q).integer_ops:
        assert not op.notes
        assert op.kind != "maximum" or op.operands[0].grid.same_as(op.grid)
        assert op.grid.lo >= 0 or op.grid.hi + op.grid.lo == -1
        if op.activation_lo:
            assert op.grid.lo == 0
    assert not [note for note in q.history[-1].notes if "float" in note]
    affine_grid = Pipeline.parse("fuse,quantize{grid=affine}").run(build(2, ["conv", "max_pool"]), PassContext(data=dataset(model, 60)))
    assert all(op.operands[0].grid.same_as(op.grid) for op in plan(affine_grid).integer_ops if op.kind == "maximum")
    x = feeds(model, 40, seed=1)
    error = Reference(q).run(x)["y"] - Reference(model).run(x)["y"]
    assert np.std(error) < 0.03 * np.std(Reference(model).run(x)["y"])
    assert sum(Reference(q).saturations.values()) == 0
    again = Reference(q)
    again.run(dict(dataset(model, 60).inputs))
    # What was calibrated on saturates nowhere but by rounding at the very end of a range.
    assert sum(again.saturations.values()) <= 4


CHECKS: dict[str, Callable[[], None]] = {
    "fuse": fuse_is_exact, "prune": pruned_equals_masked, "heads": heads_equal_masked, "quantize": quantized_is_near,
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_without_a_bug_the_checks_pass(check: Callable[[], None]) -> None:
    check()


def wrapped(patch: Patch, module: Any, name: str, change: Callable[[Any], Any]) -> None:
    real = getattr(module, name)
    patch.setattr(module, name, lambda *a, **k: change(real(*a, **k)))


def drop_epsilon(patch: Patch) -> None:
    real = affine._batch_norm

    def without(node: Any) -> Any:
        kept = node.attributes.pop("epsilon")
        found = real(node)
        node.attributes["epsilon"] = kept
        return found

    patch.setattr(affine, "_batch_norm", without)


def shift_not_scaled(patch: Patch) -> None:
    wrapped(patch, affine, "_bias", lambda bias: None if bias is None else bias * 1.001)


def subtraction_turned(patch: Patch) -> None:
    real = affine.affine

    def turned(node: Any) -> Any:
        found = real(node)
        return dataclasses.replace(found, scale=-found.scale) if found is not None and node.op_type == "Sub" else found

    patch.setattr(affine, "affine", turned)


def pads_swapped(patch: Patch) -> None:
    real = np.concatenate

    class Swapped:
        def __getattr__(self, name: str) -> Any:
            return (lambda parts, *a: real(parts[::-1], *a)) if name == "concatenate" else getattr(np, name)

    patch.setattr(clamps, "np", Swapped())


def clamp_forgets_a_bound(patch: Patch) -> None:
    wrapped(patch, rewrite, "bounds_of", lambda found: None if found is None else (found[0], float("inf")))


def groups_not_tied(patch: Patch) -> None:
    real = dependency.integer
    patch.setattr(dependency, "integer", lambda node, name, default: 1 if name == "group" else real(node, name, default))


def residuals_not_tied(patch: Patch) -> None:
    patch.setattr(dependency.Dependencies, "_broadcast", lambda self, node, out: self._of(node.inputs[0]))


def join_turned(patch: Patch) -> None:
    real = dependency.Dependencies._concat

    def turned(self: Any, node: Any) -> Any:
        axes = real(self, node)
        return tuple(a[::-1] if len(a) > 1 else a for a in axes)

    patch.setattr(dependency.Dependencies, "_concat", turned)


def heads_interleaved(patch: Patch) -> None:
    """Takes every 8th column for a head instead of 8 in a row."""
    real = dependency.Dependencies._factored

    def turned(self: Any, node: Any, axis: int, out: tuple[int, ...]) -> Any:
        found = real(self, node, axis, out)
        return None if found is None else tuple(np.roll(units, 1) if len(set(units.tolist())) > 1 else units for units in found)

    patch.setattr(dependency.Dependencies, "_factored", turned)


def heads_of_one_product_only(patch: Patch) -> None:
    patch.setattr(dependency.Dependencies, "_unite", lambda self, node, a, b: None)


def branch_and_shortcut_confused(patch: Patch) -> None:
    def keeps_the_wrong_one(graph: Any, gone: Any) -> None:
        for branch in gone:
            rewrite.redirect(branch.add.outputs[0], branch.dropped)
        rewrite.remove_dead(graph)

    patch.setattr(prune_layers, "drop", keeps_the_wrong_one)


def rounds_down(patch: Patch) -> None:
    class Floor:
        def __getattr__(self, name: str) -> Any:
            return np.floor if name == "rint" else getattr(np, name)

    patch.setattr(grids, "np", Floor())


def range_too_small(patch: Patch) -> None:
    wrapped(patch, grids, "_bounded", lambda scale: np.float32(scale * 0.8))


def bias_of_another_scale(patch: Patch) -> None:
    real = qdq.Writer.bias
    patch.setattr(qdq.Writer, "bias", lambda self, node, index, unit, axis: real(self, node, index, unit * np.float32(1.5), axis))


def maximum_not_tied(patch: Patch) -> None:
    wrapped(patch, quantize, "strongly_tied", lambda groups: [[v] for group in groups for v in group])


def sign_forgotten(patch: Patch) -> None:
    patch.setattr(quantize, "range_of", lambda value: (0.0, float("inf")))


BUGS = {
    "fuse": (drop_epsilon, shift_not_scaled, subtraction_turned, pads_swapped, clamp_forgets_a_bound),
    "prune": (groups_not_tied, residuals_not_tied, join_turned),
    "heads": (heads_interleaved, heads_of_one_product_only, branch_and_shortcut_confused),
    "quantize": (rounds_down, range_too_small, bias_of_another_scale, maximum_not_tied, sign_forgotten),
}


@pytest.mark.parametrize(("check", "bug"), [(c, b) for c, bugs in BUGS.items() for b in bugs], ids=lambda v: getattr(v, "__name__", v))
def test_a_planted_bug_is_seen(check: str, bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, GatewrightError)):
        CHECKS[check]()
