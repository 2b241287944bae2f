"""Trains the two models that gatewright ships for its demo, and writes them beside the data they are judged on.

    python bench/train_digits.py [-o runtime/demo_data]

Data: the 1,797 handwritten digits of scikit-learn (8x8 pixels, 0..16; UCI, "Optical Recognition of Handwritten Digits",
BSD), split once, stratified, into 1,257 to train and 540 to judge. Written raw, as uint8: ``Input(scale=1/16)`` prepares them.

Models: an MLP 64-32-10 and a CNN of three convolutions with BatchNorm. Both stay float; the second half of the training
lets the loss also see the weights and activations rounded to a 4-bit power-of-two grid (straight-through gradients:
Bengio, Leonard, Courville 2013, arXiv:1308.3432), so that rounding them afterwards costs little.

Needs the extras ``torch`` and ``sklearn``. Deterministic on one machine; half a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

TEST_SAMPLES = 540
BITS = 4
LARGEST_FILE = 200_000

Quantizer = Callable[[Tensor, bool], Tensor]
"""Rounds a tensor to the grid it will live on; the flag says whether it is a weight."""


def exact(x: Tensor, weight: bool) -> Tensor:
    """The float model."""
    return x


def rounded(x: Tensor, weight: bool) -> Tensor:
    """``x`` on the smallest BITS-bit power-of-two grid that holds its range; gradients pass straight through.

    The grids of the quantize pass: weights symmetric in [-(2^(b-1)-1), 2^(b-1)-1], activations unsigned where none is negative.
    """
    unsigned = not weight and bool((x >= 0).all())
    largest = 2**BITS - 1 if unsigned else 2 ** (BITS - 1) - 1
    smallest = 0 if unsigned else -largest if weight else -largest - 1
    scale = torch.exp2(torch.ceil(torch.log2(x.detach().abs().max().clamp_min(1e-8) / largest)))
    grid = torch.clamp(torch.round(x / scale), smallest, largest) * scale
    return x + (grid - x).detach()


class Mlp(nn.Module):  # type: ignore[misc]
    """x [N, 64] in 0..1 to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor, q: Quantizer = exact) -> Tensor:
        x = q(functional.relu(functional.linear(q(x, False), q(self.fc1.weight, True), self.fc1.bias)), False)
        return q(functional.linear(x, q(self.fc2.weight, True), self.fc2.bias), False)


class Cnn(nn.Module):  # type: ignore[misc]
    """x [N, 1, 8, 8] in 0..1 to logits [N, 10]: conv 8, pool, conv 16, conv 16, pool, Gemm; 4,218 weights and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor, q: Quantizer = exact) -> Tensor:
        x = functional.max_pool2d(self._block(q(x, False), self.conv1, self.bn1, q), 2)
        x = self._block(x, self.conv2, self.bn2, q)
        x = functional.max_pool2d(self._block(x, self.conv3, self.bn3, q), 2)
        return q(functional.linear(x.flatten(1), q(self.fc.weight, True), self.fc.bias), False)

    @staticmethod
    def _block(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, q: Quantizer) -> Tensor:
        if q is exact:
            return functional.relu(bn(conv(x)))
        # What is rounded is the weight with BatchNorm folded into it, as the fuse pass will do before quantizing.
        assert bn.running_mean is not None
        assert bn.running_var is not None
        factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        folded = conv.weight * factor[:, None, None, None]
        return q(functional.relu(functional.conv2d(x, q(folded, True), bn.bias - bn.running_mean * factor, padding=1)), False)


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X_train, X (uint8 [N, 64], 0..16), y_train, y (int64 [N])."""
    digits = load_digits()
    pixels, labels = digits.data.astype(np.uint8), digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(pixels, labels, test_size=TEST_SAMPLES, random_state=0, stratify=labels)
    return x_train, x_test, y_train, y_test


def train(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, shift: bool) -> None:
    """AdamW with a cosine schedule; the first half float alone, the second half float plus rounded, BatchNorm's statistics held.

    ``shift`` moves each 8x8 image by up to one pixel: a CNN should not care, an MLP without it is better.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        round_too = epoch >= epochs // 2
        model.train(not round_too)
        for picked in torch.randperm(len(x), generator=generator).split(64):
            batch = x[picked]
            if shift:
                down, right = (int(torch.randint(-1, 2, (1,), generator=generator)) for _ in range(2))
                batch = functional.pad(batch, (1, 1, 1, 1))[:, :, 1 + down : 9 + down, 1 + right : 9 + right]
            loss = functional.cross_entropy(model(batch), y[picked], label_smoothing=0.05)
            if round_too:
                loss = loss + functional.cross_entropy(model(batch, rounded), y[picked], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    model.eval()


def to_onnx(name: str, nodes: list[onnx.NodeProto], weights: dict[str, Tensor], shape: list[int]) -> onnx.ModelProto:
    """A checked model of opset 21 with input ``x`` [batch, *shape] and output ``y`` [batch, 10]."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(tensor.detach().numpy().astype(np.float32), key) for key, tensor in weights.items()],
    )
    model = helper.make_model(graph, producer_name="gatewright", opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def mlp_to_onnx(model: Mlp) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["fc1_out"], name="fc1", transB=1),
        helper.make_node("Relu", ["fc1_out"], ["relu1_out"], name="relu1"),
        helper.make_node("Gemm", ["relu1_out", "fc2.weight", "fc2.bias"], ["y"], name="fc2", transB=1),
    ]
    return to_onnx("digits_mlp", nodes, model.state_dict(), [64])


def cnn_to_onnx(model: Cnn) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    value = "x"

    def node(op: str, name: str, weights: tuple[str, ...] = (), output: str = "", **attributes: Any) -> None:
        nonlocal value
        nodes.append(helper.make_node(op, [value, *weights], [output or f"{name}_out"], name=name, **attributes))
        value = output or f"{name}_out"

    for i, pooled in ((1, True), (2, False), (3, True)):
        norm = tuple(f"bn{i}.{key}" for key in ("weight", "bias", "running_mean", "running_var"))
        node("Conv", f"conv{i}", (f"conv{i}.weight",), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        node("BatchNormalization", f"bn{i}", norm, epsilon=1e-5)
        node("Relu", f"relu{i}")
        if pooled:
            node("MaxPool", f"pool{i}", kernel_shape=[2, 2], strides=[2, 2])
    node("Flatten", "flatten", axis=1)
    node("Gemm", "fc", ("fc.weight", "fc.bias"), output="y", transB=1)
    weights = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    return to_onnx("digits_cnn", nodes, weights, [1, 8, 8])


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="train the demo's models")
    home = Path(__file__).resolve().parents[1] / "runtime" / "demo_data"
    parser.add_argument("-o", "--out", type=Path, default=home, help="folder to write to (default: %(default)s)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)

    x_train, x_test, y_train, y_test = split()
    np.savez_compressed(out / "digits.npz", X=x_test, y=y_test, X_train=x_train, y_train=y_train)
    labels = torch.from_numpy(y_train)
    for name, kind, shape, epochs, export in (
        ("digits_mlp", Mlp, (64,), 400, mlp_to_onnx),
        ("digits_cnn", Cnn, (1, 8, 8), 150, cnn_to_onnx),
    ):
        torch.manual_seed(0)
        prepared = {key: (x.astype(np.float32) / 16).reshape(-1, *shape) for key, x in (("train", x_train), ("test", x_test))}
        model = kind()
        train(model, torch.from_numpy(prepared["train"]), labels, epochs=epochs, shift=len(shape) == 3)
        path = out / f"{name}.onnx"
        onnx.save(export(model), path)
        (logits,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": prepared["test"]})
        with torch.no_grad():
            coarse = model(torch.from_numpy(prepared["test"]), rounded).numpy()
            difference = float(np.abs(model(torch.from_numpy(prepared["test"])).numpy() - logits).max())
        assert difference < 1e-4, f"the exported {name} differs from the trained one by {difference}"
        accuracies = f"accuracy {accuracy(logits, y_test):.4f}, rounded to {BITS} bits {accuracy(coarse, y_test):.4f}"
        print(f"{name}: {accuracies} ({path.stat().st_size} bytes)")
    for file in out.glob("digits*"):
        assert file.stat().st_size < LARGEST_FILE, f"{file} is too large to ship"


if __name__ == "__main__":
    main()
