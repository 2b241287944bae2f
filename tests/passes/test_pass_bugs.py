"""Bugs planted in the passes, one at a time: the checks that guard them must see each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import graph
from strategies import build, dataset, feeds
from transformer import transformer

from gatewright.errors import GatewrightError
from gatewright.frontend.data import Dataset
from gatewright.frontend.integer import plan
from gatewright.frontend.reference import Reference
from gatewright.passes import affine, cast, clamps, dependency, grids, mixed, prune_layers, qdq, quantize, rewrite, rounding, weight_only
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


def mixed_is_the_best_within_its_budget() -> None:
    """What is built has the widths that were chosen, and of all choices that the budget allows none has a lower measured loss."""
    random = np.random.default_rng(0)
    arrays = {f"w{i}": (random.normal(size=(16, n)) / 4).astype(np.float32) for i, n in enumerate((16, 16, 6))}
    arrays["w1"][0, :3] *= 12
    text = "(float[1,16] x) => (float[1,6] y) { a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c) y = MatMul(d, w2) }"
    model, data = graph(text, **arrays), Dataset({"x": random.normal(size=(60, 16)).astype(np.float32)})
    made = Pipeline.parse("mixed{average_bits=6,measure=mse}").run(model, PassContext(data=data))
    details: Any = made.history[-1].details
    bits, costs = details["bits"], details["sensitivity"]
    sizes = dict(zip(bits, (256, 256, 96), strict=True))
    built = {op.name: int(np.abs(op.weight).max()).bit_length() + 1 for op in plan(made).integer_ops if op.weight is not None}
    assert built == bits
    choices = [dict(zip(bits, tried, strict=True)) for tried in itertools.product((4, 8), repeat=3)]
    allowed = [c for c in choices if sum(sizes[n] * b for n, b in c.items()) <= 6 * sum(sizes.values())]
    assert bits in allowed
    assert bits == min(allowed, key=lambda c: sum(costs[n][str(b)] for n, b in c.items()))
    assert max(costs, key=lambda n: costs[n]["4"]) == list(bits)[1], "the layer with the outliers"


def cast_is_near_and_within_range() -> None:
    """What overflows on the data or in a constant stays in float32, so does what is excluded; edges are float32; types are ONNX's."""
    model = graph(
        "(float[1,4] x) => (float[1,4] y, float[1,4] r) "
        "{ a = MatMul(x, w) r = Relu(a) b = MatMul(r, v) t = Tanh(b) u = Sin(t) c = Mul(u, large) d = Mul(c, tiny) y = Add(d, t) }",
        w=np.eye(4, dtype=np.float32) * 3000, v=np.eye(4, dtype=np.float32) * 1e-4, large=np.full(4, 1e6, np.float32),
        tiny=np.full(4, 1e-6, np.float32),
    )  # fmt: skip
    data = Dataset({"x": np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32) * 30})
    small = Pipeline.parse("cast{exclude=u}").run(model, PassContext(data=data))
    wide = {n.op_type for n in small.graph if n.op_type != "Cast" and n.outputs[0].dtype == ir.DataType.FLOAT}
    assert wide == {"MatMul", "Relu", "Sin", "Mul"}
    assert {n.op_type for n in small.graph if n.outputs[0].dtype == ir.DataType.FLOAT16} >= {"Tanh", "Add"}
    assert [(v.name, v.dtype) for v in small.outputs] == [(v.name, v.dtype) for v in model.outputs]
    x = {"x": data.inputs["x"][:20]}
    wanted, got = Reference(model).run(x), Reference(small).run(x)
    assert all(relative_error(wanted[name], got[name]) < 5e-3 for name in wanted)
    pooled = Pipeline.parse("cast{to=bfloat16}").run(build(2, ["conv", "max_pool", "relu"]))
    onnx.checker.check_model(onnx.load_from_string(pooled.to_bytes()), full_check=True)


def gptq_of_pruned_heads() -> None:
    """Heads removed, then 4 bits: as of the masked model, whose empty columns change no other's rounding; nearer than plain rounding."""
    model, _ = transformer("gpt")
    context = PassContext(data=Dataset({"ids": np.random.default_rng(2).integers(0, 11, (60, 6))}))
    pruning = Prune("head", 0.5)
    small, silent = Pipeline((pruning,)).run(model), masked(model, pruning)
    rounded, other, plain = (
        Pipeline.parse(text).run(m, context) for m, text in ((small, "gptq"), (silent, "gptq"), (small, "nearest"))
    )  # fmt: skip
    columns = {n.name: rewrite.real_constant(n.inputs[1]) for n in other.graph if n.op_type == "MatMul"}
    compared = 0
    for node in rounded.graph:
        ours, theirs = (rewrite.real_constant(node.inputs[1]) if node.op_type == "MatMul" else None), columns.get(node.name)
        if ours is not None and theirs is not None and len(ours) == len(theirs):
            kept = theirs[:, np.abs(theirs).max(axis=0) > 0]
            assert kept.shape == ours.shape
            assert np.mean(np.isclose(ours, kept, rtol=1e-4, atol=1e-6)) > 0.99
            compared += 1
    assert compared >= 5
    assert context.data is not None
    x = dict(context.data.inputs)
    wanted = Reference(silent).run(x)["logits"]
    errors = [float(np.mean((Reference(m).run(x)["logits"] - wanted) ** 2)) for m in (rounded, plain)]
    assert errors[0] < 0.7 * errors[1]


CHECKS: dict[str, Callable[[], None]] = {
    "fuse": fuse_is_exact, "prune": pruned_equals_masked, "heads": heads_equal_masked, "quantize": quantized_is_near,
    "mixed": mixed_is_the_best_within_its_budget, "cast": cast_is_near_and_within_range, "gptq": gptq_of_pruned_heads,
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


def budget_forgotten(patch: Patch) -> None:
    patch.setattr(mixed, "choose", lambda sizes, costs, candidates, budget: dict.fromkeys(sizes, candidates[-1]))


def least_sensitive_stays_wide(patch: Patch) -> None:
    wrapped(patch, mixed, "sensitivities", lambda costs: {key: -cost for key, cost in costs.items()})


def layers_confused(patch: Patch) -> None:
    def turned(costs: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
        names = list(dict.fromkeys(name for name, _ in costs))
        return {(names[(names.index(name) + 1) % len(names)], bits): cost for (name, bits), cost in costs.items()}

    wrapped(patch, mixed, "sensitivities", turned)


def choice_not_built(patch: Patch) -> None:
    real = mixed.Mixed._quantizer
    patch.setattr(mixed.Mixed, "_quantizer", lambda self, chosen: real(self, {}))


def float16_without_end(patch: Patch) -> None:
    patch.setitem(cast.LARGEST, "float16", 3e38)


def overflow_unseen(patch: Patch) -> None:
    patch.setattr(cast.CastTo, "_too_large", lambda self, model, context: {})


def edges_stay_narrow(patch: Patch) -> None:
    patch.setattr(cast._Caster, "_widen", lambda self, value, inside: setattr(value, "type", ir.TensorType(self.dtype)))


def exclusion_ignored(patch: Patch) -> None:
    wrapped(patch, cast.CastTo, "_keeps", lambda why: None if why == "excluded" else why)


def any_type_for_any_operator(patch: Patch) -> None:
    patch.setattr(cast, "_has_form", lambda node, wanted: True)


def errors_not_made_up_for(patch: Patch) -> None:
    patch.setattr(rounding, "gptq", lambda w, steps, h, hi, damping=0.01: rounding.nearest(w, steps, hi))


def moments_of_another_order(patch: Patch) -> None:
    real = weight_only.second_moments
    patch.setattr(weight_only, "second_moments", lambda *a: ((layer, h[:, ::-1, ::-1]) for layer, h in real(*a)))


BUGS = {
    "fuse": (drop_epsilon, shift_not_scaled, subtraction_turned, pads_swapped, clamp_forgets_a_bound),
    "prune": (groups_not_tied, residuals_not_tied, join_turned),
    "heads": (heads_interleaved, heads_of_one_product_only, branch_and_shortcut_confused),
    "mixed": (budget_forgotten, least_sensitive_stays_wide, layers_confused, choice_not_built),
    "cast": (float16_without_end, overflow_unseen, edges_stay_narrow, exclusion_ignored, any_type_for_any_operator),
    "gptq": (errors_not_made_up_for, moments_of_another_order, heads_interleaved),
    "quantize": (rounds_down, range_too_small, bias_of_another_scale, maximum_not_tied, sign_forgotten),
}


@pytest.mark.parametrize(("check", "bug"), [(c, b) for c, bugs in BUGS.items() for b in bugs], ids=lambda v: getattr(v, "__name__", v))
def test_a_planted_bug_is_seen(check: str, bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, GatewrightError)):
        CHECKS[check]()
