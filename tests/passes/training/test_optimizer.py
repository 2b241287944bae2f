"""The optimizers take the steps that torch's own do."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from gatewright.passes.training.optimizer import Optimizer, clip  # noqa: E402


@pytest.mark.parametrize(("kind", "momentum"), [("adam", 0.9), ("sgd", 0.9), ("sgd", 0.0)])
def test_steps(kind: str, momentum: float) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(4, 3, dtype=torch.float64) for _ in range(2))
    ours, theirs = ({"a": a.clone().requires_grad_(), "b": b.clone().requires_grad_()} for _ in range(2))
    groups = [{"params": [theirs["a"]], "lr": 0.01}, {"params": [theirs["b"]], "lr": 0.002}]
    reference = torch.optim.Adam(groups) if kind == "adam" else torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0)
    optimizer = Optimizer(kind, ours, {"a": 0.01, "b": 0.002}, momentum)  # type: ignore[arg-type]
    for step in range(20):
        for held in (ours, theirs):
            loss = ((held["a"] ** 2).sum() + (held["a"] * held["b"]).exp().sum()) if step % 3 else (held["a"] ** 4).sum()
            optimizer.clear() if held is ours else reference.zero_grad()
            loss.backward()
        optimizer.step(1.0)
        reference.step()
    for name in ours:
        assert torch.isfinite(ours[name]).all()
        assert torch.allclose(ours[name], theirs[name], rtol=1e-10, atol=1e-12)


def test_the_factor_scales_the_step() -> None:
    x = torch.ones(2, requires_grad=True)
    x.grad = torch.ones(2)
    Optimizer("sgd", {"x": x}, {"x": 0.5}, 0.0).step(0.1)
    assert x.tolist() == pytest.approx([0.95, 0.95])


def test_clipping_scales_all_gradients_together() -> None:
    x, y, untouched = (torch.zeros(1, requires_grad=True) for _ in range(3))
    x.grad, y.grad = torch.tensor([3.0]), torch.tensor([4.0])
    clip({"x": x, "y": y, "z": untouched}, 10.0)
    assert x.grad.item() == 3.0
    clip({"x": x, "y": y, "z": untouched}, 1.0)
    assert (x.grad.item(), y.grad.item()) == pytest.approx((0.6, 0.8))
