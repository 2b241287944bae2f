"""Trains the two networks of the FPGA table that gatewright does not ship: a pruned MLP and a CNN small enough to unroll.

    python bench/rtl_train.py -o build/rtl_models

digits_mlp_pruned   the demo's MLP 64-32-10 with most of its weights gone
digits_cnn_small    conv 1-6 and 6-12, 3x3 with stride 2, and a dense layer 48-10; 8x8 images; half its weights gone

How many the MLP loses is chosen on a fifth of the training digits, which its training does not see: the most of ``SPARSITIES``
that leaves ``WANTED`` of them right. Then it is trained again on all of them. The test digits choose nothing; they are looked at last.

Weights are taken away by magnitude while training goes on, along the cubic schedule of Zhu and Gupta ("To prune, or not to prune",
arXiv:1710.01878); all the while the loss also sees the network rounded to 4 bits, as in ``train_digits.py``. Both are written
as float models: zeros stay zeros when they are quantized. Needs the extras torch and sklearn; five minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from train_digits import Mlp, Quantizer, exact, mlp_to_onnx, rounded, split, to_onnx

EPOCHS = 600
SPARSITIES = (0.88, 0.86, 0.84, 0.82, 0.80)
"""Of the MLP's weights, the most first."""
WANTED = 0.95
"""Of the held-out digits, the network rounded to 4 bits. One point above what the FPGA table asks for on the test digits."""
CNN_SPARSITY = 0.5


class SmallCnn(nn.Module):  # type: ignore[misc]
    """x [N, 1, 8, 8] in 0..1 to logits [N, 10]; 3,936 multiplications an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 12, 3), nn.Linear(48, 10)

    def forward(self, x: Tensor, q: Quantizer = exact) -> Tensor:
        x = q(x, False)
        for conv in (self.conv1, self.conv2):
            x = q(functional.relu(functional.conv2d(x, q(conv.weight, True), conv.bias, stride=2, padding=1)), False)
        return q(functional.linear(x.flatten(1), q(self.fc.weight, True), self.fc.bias), False)


def train(model: nn.Module, x: Tensor, y: Tensor, sparsity: float) -> None:
    """AdamW; weights go in the middle half of the epochs, globally by magnitude relative to their layer's deviation."""
    weights = [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]
    masks = [torch.ones_like(weight) for weight in weights]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        progress = min(max((epoch / EPOCHS - 0.25) / 0.4, 0.0), 1.0)
        masks = _masks(weights, sparsity * (1 - (1 - progress) ** 3))
        for picked in torch.randperm(len(x), generator=generator).split(64):
            loss = sum(functional.cross_entropy(model(x[picked], q), y[picked], label_smoothing=0.05) for q in (exact, rounded))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for weight, mask in zip(weights, masks, strict=True):
                    weight.mul_(mask)
        schedule.step()
    model.eval()


def _masks(weights: list[nn.Parameter], sparsity: float) -> list[Tensor]:
    scores = [(weight.detach().abs() / weight.detach().std()) for weight in weights]
    flat = torch.cat([score.flatten() for score in scores])
    count = round(sparsity * len(flat))
    threshold = flat.kthvalue(count).values if count else torch.tensor(-1.0)
    return [(score > threshold).float() for score in scores]


def cnn_to_onnx(model: SmallCnn) -> onnx.ModelProto:
    nodes, value = [], "x"
    for name in ("conv1", "conv2"):
        nodes.append(
            helper.make_node(
                "Conv", [value, f"{name}.weight", f"{name}.bias"], [f"{name}_out"], name=name,
                kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
            )
        )  # fmt: skip
        nodes.append(helper.make_node("Relu", [f"{name}_out"], [f"{name}_relu"], name=f"{name}_relu"))
        value = f"{name}_relu"
    nodes.append(helper.make_node("Flatten", [value], ["flat"], name="flatten", axis=1))
    nodes.append(helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["y"], name="fc", transB=1))
    return to_onnx("digits_cnn_small", nodes, model.state_dict(), [1, 8, 8])


def accuracy(model: nn.Module, x: Tensor, y: Tensor, q: Quantizer) -> float:
    with torch.no_grad():
        return float((model(x, q).argmax(1) == y).float().mean())


def trained(kind: type[nn.Module], x: Tensor, y: Tensor, sparsity: float) -> nn.Module:
    torch.manual_seed(0)
    model = kind()
    train(model, x, y, sparsity)
    return model


def chosen_sparsity(x: Tensor, y: Tensor) -> float:
    """Of the MLP, on digits that its training does not see; the least of ``SPARSITIES`` if none is right often enough."""
    seen, held_out = train_test_split(np.arange(len(x)), test_size=0.2, random_state=0, stratify=y.numpy())
    for sparsity in SPARSITIES:
        found = accuracy(trained(Mlp, x[seen], y[seen], sparsity), x[held_out], y[held_out], rounded)
        print(f"digits_mlp_pruned, {sparsity:.0%} of the weights gone: {found:.4f} of {len(held_out)} held-out digits", flush=True)
        if found >= WANTED:
            return sparsity
    return SPARSITIES[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="train the models of the FPGA table")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    pixels_train, pixels_test, *labels = split()
    train_labels, test_labels = (torch.from_numpy(part) for part in labels)
    for name, kind, shape in (("digits_mlp_pruned", Mlp, (64,)), ("digits_cnn_small", SmallCnn, (1, 8, 8))):
        train_images, test_images = (torch.from_numpy((x.astype(np.float32) / 16).reshape(-1, *shape)) for x in (pixels_train, pixels_test))
        sparsity = chosen_sparsity(train_images, train_labels) if kind is Mlp else CNN_SPARSITY
        model = trained(kind, train_images, train_labels, sparsity)
        onnx.save(mlp_to_onnx(model) if kind is Mlp else cnn_to_onnx(model), out / f"{name}.onnx")
        plain, coarse = (accuracy(model, test_images, test_labels, q) for q in (exact, rounded))
        zeros = np.mean([float((p == 0).float().mean()) for n, p in model.named_parameters() if n.endswith("weight")])
        print(f"{name}: accuracy {plain:.4f}, rounded to 4 bits {coarse:.4f}, mean of the layers' zeros {zeros:.2f}", flush=True)


if __name__ == "__main__":
    main()
