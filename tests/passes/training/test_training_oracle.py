"""Training held against JAX's gradients and closed forms; and each known way to get it wrong is noticed by one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("jax")

from graphs import graph  # noqa: E402
from jax_oracle import Oracle, cross_entropy, distillation, gradients  # noqa: E402
from tasks import bars, clusters, cnn, mlp, weights  # noqa: E402
from test_transformers import sequences, transformer  # noqa: E402

from gatewright.frontend.data import Dataset  # noqa: E402
from gatewright.frontend.model import Model  # noqa: E402
from gatewright.frontend.reference import Reference  # noqa: E402
from gatewright.passes.base import PassContext  # noqa: E402
from gatewright.passes.training import batches, executor, fakequant, lesson, loop  # noqa: E402
from gatewright.passes.training.distil import Distil  # noqa: E402
from gatewright.passes.training.finetune import Finetune  # noqa: E402
from gatewright.passes.training.optimizer import Optimizer  # noqa: E402
from gatewright.passes.training.outset import Outset  # noqa: E402
from gatewright.passes.training.qat import Qat  # noqa: E402

LOGITS = "y = Identity(z)"


def held_against(begun: Outset, oracle: Callable[[dict[str, Any]], Any], data: Dataset, training: bool = False) -> None:
    """The objective's loss and its gradient in every parameter, to float32's accuracy: some are zero but for cancellation."""
    net = begun.net
    at = {name: p.detach().numpy().copy() for name, p in net.parameters.items()}
    loss, _ = begun.objective(net, data.feeds(net.model.inputs), data.labels, training)
    loss.backward()
    value, wanted = gradients(oracle, at)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-4)
    assert wanted.keys() == net.parameters.keys()
    for name, p in net.parameters.items():
        found = np.zeros(tuple(p.shape), np.float32) if p.grad is None else p.grad.numpy()
        np.testing.assert_allclose(found, wanted[name], rtol=2e-3, atol=2e-4 * max(np.abs(wanted[name]).max(), 1e-2), err_msg=name)


def float_model(model: Model, data: Dataset, training: bool = False) -> None:
    begun = Finetune().outset(model, PassContext(data=data))
    oracle, feeds, y = Oracle(model, training=training), data.feeds(model.inputs), np.asarray(data.labels)
    name = model.outputs[0].name
    held_against(begun, lambda p: cross_entropy(oracle(p, feeds, name), y), data, training)


def quantized(grid: str, per: str, bits: int) -> None:
    """Some activations saturate, some weights lie outside of their grid: every branch of the gradient is taken.

    The activation is smooth: sums of integers are often zero, where the last bit of a float decides on which side of a Relu they lie.
    """
    ready, data = weights(mlp()), clusters(40)
    model = graph("(float[1,4] x) => (float[1,3] y) { h = Gemm(x, w1, b1) r = Gelu(h) y = Gemm(r, w2, b2) }", **ready)
    begun = Qat(bits=4, weight_bits=bits, grid=grid, per=per).outset(model, PassContext(data=data))  # type: ignore[arg-type]
    rng, net = np.random.default_rng(1), begun.net
    with torch.no_grad():
        for name, p in net.parameters.items():
            moved = rng.normal(-0.4, 0.3, tuple(p.shape)) if name in net.grids.scales else rng.normal(0, 0.05, tuple(p.shape))
            p += torch.tensor(moved, dtype=torch.float32)
    oracle = Oracle(net.model, net.grids, pow2=grid == "pow2")
    feeds, y = data.feeds(net.model.inputs), np.asarray(data.labels)
    held_against(begun, lambda p: cross_entropy(oracle(p, feeds, "y"), y), data)


def distilled() -> None:
    """Two teachers, a student of another width."""
    data, student, panel = clusters(30), mlp(8, seed=5, tail=LOGITS), [mlp(seed=i, tail=LOGITS) for i in (1, 2)]
    feeds, y = data.feeds(student.inputs), np.asarray(data.labels)
    said = [Reference(t).run(feeds)["y"] for t in panel]
    begun = Distil(alpha=0.3, temperature=2.5).outset(student, PassContext(data=data), panel)
    oracle = Oracle(student)
    held_against(begun, lambda p: distillation(oracle(p, feeds, "y"), said, y, 2.5, 0.3), data)


def regression(seed: int = 0) -> tuple[Model, Dataset]:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(4, 2)).astype(np.float32)
    model = graph("(float[1,4] x) => (float[1,2] y) { y = Gemm(x, w, b) }", w=w, b=np.ones(2, np.float32))
    return model, Dataset({"x": rng.normal(size=(8, 4)).astype(np.float32)}, rng.normal(size=(8, 2)).astype(np.float32))


def stepped(optimizer: str, steps: int = 4) -> None:
    """Full batches in numpy, float64: L1, L2, the norm clipped, Nesterov's momentum, or Adam (Kingma and Ba 2015, Algorithm 1)."""
    model, data = regression()
    options = Finetune(
        epochs=steps, lr=0.1, optimizer=optimizer, schedule="constant", batch=8, validation=0, l1=0.01, l2=0.1, clip=1.2,  # type: ignore[arg-type]
    )  # fmt: skip
    found = weights(options.run(model, PassContext(data=data)).model)
    x, y = np.asarray(data.arrays["x"], np.float64), np.asarray(data.labels, np.float64)
    p = {name: array.astype(np.float64) for name, array in weights(model).items()}
    m = {name: np.zeros_like(a) for name, a in p.items()}
    v = {name: np.zeros_like(a) for name, a in p.items()}
    for t in range(1, steps + 1):
        error = 2 * (x @ p["w"] + p["b"] - y) / y.size
        g = {"w": x.T @ error + 0.1 * p["w"] + 0.01 * np.sign(p["w"]), "b": error.sum(0)}
        norm = np.sqrt(sum((a**2).sum() for a in g.values()))
        g = {name: a * min(1, 1.2 / norm) for name, a in g.items()}
        for name in p:
            if optimizer == "sgd":
                m[name] = 0.9 * m[name] + g[name]
                p[name] -= 0.1 * (g[name] + 0.9 * m[name])
            else:
                m[name], v[name] = 0.9 * m[name] + 0.1 * g[name], 0.999 * v[name] + 0.001 * g[name] ** 2
                p[name] -= 0.1 * m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)
    for name in p:
        np.testing.assert_allclose(found[name], p[name], rtol=1e-4, atol=1e-5)


def masters() -> None:
    """Two hundred steps, each far below bfloat16's resolution of a weight near 1 (2⁻⁸), add up: y = w·x with x = 1 towards 2."""
    model = graph("(float[1,1] x) => (float[1,1] y) { y = MatMul(x, w) }", w=np.ones((1, 1), np.float32))
    data = Dataset({"x": np.ones((1, 1), np.float32)}, np.full((1, 1), 2, np.float32))
    options = Finetune(epochs=200, lr=5e-4, optimizer="sgd", momentum=0, schedule="constant", validation=0, precision="bf16")
    (found,) = weights(options.run(model, PassContext(data=data)).model).values()
    assert found.dtype == np.float32
    assert float(found[0, 0]) == pytest.approx(2 - (1 - 2 * 5e-4) ** 200, rel=2e-3)


def computed_in_bf16() -> None:
    """The products of a bf16 run are bfloat16's: off by up to 2⁻⁸, and by more than float32 ever is."""
    model, data = regression(3)
    coarse, fine = (Finetune(precision=p, batch=8) for p in ("bf16", "float32"))  # type: ignore[arg-type]
    found = []
    for options in (coarse, fine):
        begun = options.outset(model, PassContext(data=data))
        batches.Batches(options, begun.net, begun.objective, data, 0).gradient(0, 0)
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in begun.net.parameters.values())
        found.append(np.concatenate([p.grad.numpy().ravel() for p in begun.net.parameters.values()]))
    error = np.abs(found[0] - found[1]).max() / np.abs(found[1]).max()
    assert 1e-5 < error < 2e-2


CHECKS: dict[str, Callable[[], None]] = {
    "mlp": lambda: float_model(mlp(tail=LOGITS), clusters(30)),
    "cnn": lambda: float_model(cnn(), bars(20)),
    "cnn, batch statistics": lambda: float_model(cnn(), bars(20), training=True),
    "transformer": lambda: float_model(transformer(), sequences(6)),
    **{
        f"qat {grid} per {per}, {bits} bits": lambda grid=grid, per=per, bits=bits: quantized(grid, per, bits)  # type: ignore[misc]
        for grid, per, bits in (
            ("affine", "tensor", 4), ("affine", "channel", 3), ("affine", "channel", 2), ("symmetric", "channel", 4),
            ("symmetric", "tensor", 1), ("affine", "channel", 1), ("pow2", "tensor", 3), ("pow2", "channel", 2),
        )
    },
    "distil": distilled,
    "sgd": lambda: stepped("sgd"),
    "adam": lambda: stepped("adam"),
    "masters": masters,
    "bf16": computed_in_bf16,
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_training_is_what_the_oracle_says(check: str) -> None:
    CHECKS[check]()


# ---- planted bugs --------------------------------------------------------------------------------------------------

_honest_quantize, _honest_sign = fakequant.quantize, fakequant.sign_through
_honest_taught, _honest_step = lesson.Lesson.taught, Optimizer.step


def _coarse_masters(self: Optimizer, factor: float) -> None:
    _honest_step(self, factor)
    with torch.no_grad():
        for tensor in self.tensors.values():
            tensor.copy_(tensor.to(torch.bfloat16).float())


def _uncorrected(self: Optimizer, name: str, gradient: Any) -> Any:
    mean, square = (self.state.setdefault(f"{k} {name}", torch.zeros_like(gradient)) for k in "mv")
    mean.lerp_(gradient, 0.1)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    return mean / (torch.sqrt(square) + 1e-8)


def _each_alone(tensors: Any, largest: float) -> None:
    for tensor in tensors.values():
        if tensor.grad is not None:
            tensor.grad.mul_(min(1.0, largest / float(tensor.grad.norm())))


def _unbiased(x: Any, dim: Any, correction: int) -> Any:
    return torch.var(x, dim=dim, correction=1), torch.mean(x, dim=dim)


def _reversed(self: lesson.Lesson, z: Any, teachers: Any) -> tuple[Any, float]:
    t = self.options.temperature
    p, q = torch.stack([torch.softmax(x / t, -1) for x in teachers]).mean(0), torch.softmax(z / t, -1)
    return t**2 * (q * (torch.log(q) - torch.log(p))).sum(-1).mean(), 0.0


def _one_teacher(self: lesson.Lesson, z: Any, teachers: Any) -> Any:
    return _honest_taught(self, z, teachers[:1])


PLANTED: dict[str, tuple[str, object, str, object]] = {
    "rounding has no gradient": ("qat affine per tensor, 4 bits", fakequant, "round_through", torch.round),
    "the gradient passes where the clamp saturates": (
        "qat affine per tensor, 4 bits", fakequant, "quantize",
        lambda x, s, z, lo, hi: (r := fakequant.round_through(x / s) + z) + (torch.clamp(r, lo, hi) - r).detach(),
    ),
    "the upper bound of weights off by one": (
        "qat symmetric per channel, 4 bits", fakequant, "quantize", lambda x, s, z, lo, hi: _honest_quantize(x, s, z, lo, hi + 1),
    ),
    "the upper bound of activations off by one": (
        "qat affine per tensor, 4 bits", executor, "quantize", lambda x, s, z, lo, hi: _honest_quantize(x, s, z, lo, hi - 1),
    ),
    "scales do not learn": (
        "qat affine per channel, 3 bits", fakequant, "quantize", lambda x, s, z, lo, hi: _honest_quantize(x, s.detach(), z, lo, hi),
    ),
    "scales learn at another rate": (
        "qat affine per channel, 3 bits", executor, "octaves", lambda start, t, pow2, factor: fakequant.octaves(start, t, pow2, 1.0),
    ),
    "power-of-two scales leave their grid": (
        "qat pow2 per tensor, 3 bits", executor, "octaves", lambda start, t, pow2, factor: fakequant.octaves(start, t, False, factor),
    ),
    "binary weights learn wherever they are": (
        "qat symmetric per tensor, 1 bits", fakequant, "sign_through", lambda x, reach: _honest_sign(x, reach * 100),
    ),
    "no T² before the divergence": (
        "distil", lesson.Lesson, "taught", lambda self, z, teachers: (_honest_taught(self, z, teachers)[0] / 2.5**2, 0.0),
    ),
    "the divergence the other way round": ("distil", lesson.Lesson, "taught", _reversed),
    "the first teacher alone": ("distil", lesson.Lesson, "taught", _one_teacher),
    "masters in bf16": ("masters", Optimizer, "step", _coarse_masters),
    "bf16 that is float32": ("bf16", batches.Batches, "_precision", lambda self: torch.autocast("cpu", enabled=False)),
    "Adam without its bias correction": ("adam", Optimizer, "_adam", _uncorrected),
    "momentum without looking ahead": ("sgd", Optimizer, "_sgd", lambda self, name, g: self.state.setdefault(
        f"v {name}", torch.zeros_like(g)
    ).mul_(0.9).add_(g)),
    "each gradient clipped alone": ("sgd", loop, "clip", _each_alone),
    "biases decay too": ("sgd", loop.Trainer, "_decayed", lambda self: iter(self.net.parameters.values())),
    "batch statistics of n − 1": ("cnn, batch statistics", torch, "var_mean", _unbiased),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_noticed(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, where, name, wrong = PLANTED[bug]
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError):
        CHECKS[check]()
