"""Trains the two networks of the FPGA table that gatewright does not ship: a pruned MLP and a CNN small enough to unroll.

    python bench/rtl_train.py -o build/rtl_models

digits_mlp_pruned   the demo's MLP 64-32-10 with most of its weights gone
digits_cnn_small    conv 1-6 and 6-12, 3x3 with stride 2, and a dense layer 48-10; 8x8 images; half its weights gone

Weights are taken away by magnitude while training goes on, along the cubic schedule of Zhu and Gupta ("To prune, or not to prune",
arXiv:1710.01878); all the while the loss also sees the network rounded to 4 bits, at the end it sees nothing else. Activations
are rounded to the range that they have over all training digits, as calibration will do. Both are written as float models: zeros
stay zeros when they are quantized.

A fifth of the training digits is held out. How many weights the MLP loses is chosen on them, as the quantize pass leaves it: the
most of ``SPARSITIES`` that gets ``WANTED`` of them right. The test digits choose nothing; they are looked at last.
Needs the extras torch and sklearn; five minutes.
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
from train_digits import BITS, Mlp, Quantizer, exact, mlp_to_onnx, rounded, split, to_onnx

import gatewright as gw
from gatewright.frontend.reference import Reference

EPOCHS = 600
SPARSITIES = (0.88, 0.86, 0.84, 0.82, 0.80)
"""Of the MLP's weights, the most first."""
WANTED = 0.95
"""Of the held-out digits. One point above what the FPGA table asks for on the test digits."""
PRUNED, ONLY_ROUNDED = (0.25, 0.65), 0.7
"""Of the epochs: between which weights go, and from when on the loss sees the rounded network alone."""
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


class Calibrated:
    """Rounds weights like ``train_digits.rounded``, activations to the smallest grid that held what was last observed."""

    def __init__(self) -> None:
        self.observing, self.largest, self._calls = False, list[Tensor](), 0

    def observe(self, model: nn.Module, x: Tensor) -> None:
        self.observing, self.largest = True, []
        with torch.no_grad():
            model(x, self)
        self.observing, self._calls = False, 0

    def __call__(self, x: Tensor, weight: bool) -> Tensor:
        if weight:
            return rounded(x, True)
        if self.observing:
            self.largest.append(x.detach().abs().max())
            return rounded(x, False)
        largest = self.largest[self._calls % len(self.largest)]
        self._calls += 1
        # Every activation of these networks is unsigned, but for the logits, which come last.
        signed = self._calls % len(self.largest) == 0
        highest = 2 ** (BITS - 1) - 1 if signed else 2**BITS - 1
        scale = torch.exp2(torch.ceil(torch.log2(largest.clamp_min(1e-8) / highest)))
        grid = torch.clamp(torch.round(x / scale), -highest - 1 if signed else 0, highest) * scale
        return x + (grid - x).detach()


def train(model: nn.Module, x: Tensor, y: Tensor, sparsity: float) -> None:
    """AdamW; weights go globally by magnitude relative to their layer's deviation."""
    weights = [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]
    masks = [torch.ones_like(weight) for weight in weights]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    generator, coarse = torch.Generator().manual_seed(0), Calibrated()
    for epoch in range(EPOCHS):
        at, (begin, end) = epoch / EPOCHS, PRUNED
        progress = min(max((at - begin) / (end - begin), 0.0), 1.0)
        masks = _masks(weights, sparsity * (1 - (1 - progress) ** 3))
        coarse.observe(model, x)
        seen: tuple[Quantizer, ...] = (coarse,) if at >= ONLY_ROUNDED else (exact, coarse)
        for picked in torch.randperm(len(x), generator=generator).split(64):
            loss = sum(functional.cross_entropy(model(x[picked], q), y[picked], label_smoothing=0.05) for q in seen)
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


def accuracy(path: Path, calibration: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Of the network in ``path`` as the FPGA table quantizes it."""
    model = gw.transform(gw.load(path), f"fuse,quantize{{bits={BITS},grid=pow2}}", data=gw.Dataset({"x": calibration}))
    return float((Reference(model).run({"x": x})["y"].argmax(1) == y).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="train the models of the FPGA table")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    pixels, test_pixels, labels, test_labels = split()
    seen, held_out = train_test_split(np.arange(len(pixels)), test_size=0.2, random_state=0, stratify=labels)
    kinds = (("digits_mlp_pruned", Mlp, (64,), SPARSITIES), ("digits_cnn_small", SmallCnn, (1, 8, 8), (CNN_SPARSITY,)))
    for name, kind, shape, sparsities in kinds:
        images, test_images = ((x.astype(np.float32) / 16).reshape(-1, *shape) for x in (pixels, test_pixels))
        for sparsity in sparsities:
            torch.manual_seed(0)
            model = kind()
            train(model, torch.from_numpy(images[seen]), torch.from_numpy(labels[seen]), sparsity)
            onnx.save(mlp_to_onnx(model) if kind is Mlp else cnn_to_onnx(model), out / f"{name}.onnx")
            found = accuracy(out / f"{name}.onnx", images, images[held_out], labels[held_out])
            print(f"{name}: {sparsity:.0%} of the weights gone, {found:.4f} of {len(held_out)} held-out digits right", flush=True)
            if found >= WANTED:
                break
        print(f"{name}: {accuracy(out / f'{name}.onnx', images, test_images, test_labels):.4f} of the test digits right", flush=True)


if __name__ == "__main__":
    main()
