"""On a machine with an NVIDIA GPU: the target cuda against ONNX Runtime's CUDA provider, torch.compile and TensorRT where installed.

    python bench/cuda_speed.py [--models NAMES] [--arch sm_90] [--precision float32|tf32|float16|bfloat16] [--shared ../shared]

Each engine gives the median of blocks of runs, input and output in the GPU's memory where the engine allows it; ratios are theirs to
ours, above 1 where ours is faster. An engine that is not installed is left out by name. Two more ratios are of ours to itself: with
attention in separate kernels, and without cuBLAS.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from models import subjects

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.runtime.bench import random_feeds
from gatewright.targets.tvm.cuda.driver import GpuExecutor, has_gpu

RUNS, BLOCKS = 20, 7


def blocks(run: Callable[[], float]) -> float:
    """Median seconds of one run over blocks with pauses between them."""
    run()
    found = []
    for _ in range(BLOCKS):
        found.append(run())
        time.sleep(0.2)
    return float(np.median(found))


def ours(model: gw.Model, target: str) -> float:
    with gw.compile(model, target).load("device") as executor:
        assert isinstance(executor, GpuExecutor)
        executor.run(random_feeds(model.inputs, 0))
        return blocks(lambda: executor.time_native(RUNS))


def onnxruntime_cuda(model: gw.Model, provider: str) -> float | None:
    """ONNX Runtime on the GPU, or its TensorRT provider; None where it is not built with that."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return None
    session = onnxruntime.InferenceSession(model.to_bytes(), providers=[provider, "CUDAExecutionProvider"])
    binding = session.io_binding()
    for name, array in random_feeds(model.inputs, 0).items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for info in model.outputs:
        binding.bind_output(info.name, "cuda")

    def run() -> float:
        began = time.perf_counter()
        for _ in range(RUNS):
            session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return (time.perf_counter() - began) / RUNS

    return blocks(run)


def torch_compile(model: gw.Model) -> float | None:
    """torch.compile of the model as the project's own torch interpreter of ONNX runs it; None without torch on a GPU."""
    try:
        import torch

        from gatewright.passes.training.executor import Executor
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    executor = Executor(model)
    for tensors in (executor.parameters, executor.running, executor._constants):
        tensors.update({name: tensor.detach().cuda() for name, tensor in tensors.items()})
    module: Any = torch.compile(executor.run, mode="max-autotune")
    feeds = {name: torch.from_numpy(array).cuda() for name, array in random_feeds(model.inputs, 0).items()}

    def run() -> float:
        with torch.inference_mode():
            began = time.perf_counter()
            for _ in range(RUNS):
                module(feeds)
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / RUNS

    return blocks(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    given = parser.parse_args()
    if not has_gpu():
        raise SystemExit("there is no NVIDIA GPU here, or no driver for it: nothing can be measured")
    base = f"cuda:{given.arch}{{precision={given.precision}"
    ratios: dict[str, list[float]] = {}
    for subject in subjects(given.models):
        try:
            model = subject.load(given.shared)
            own = ours(model, base + "}")
            without = {option: ours(model, f"{base},{option}}}") for option in ("attention=separate", "cublas=never")}
        except (GatewrightError, OSError) as error:
            print(f"{subject.name:24} {error}")
            continue
        others = {
            "ort-cuda": onnxruntime_cuda(model, "CUDAExecutionProvider"), "tensorrt": onnxruntime_cuda(model, "TensorrtExecutionProvider"),
            "torch.compile": torch_compile(model), **without,
        }  # fmt: skip
        said = ", ".join(f"{name} {'not installed' if s is None else f'{s / own:.2f}'}" for name, s in others.items())
        print(f"{subject.name:24} {own * 1e3:9.3f} ms; {said}", flush=True)
        for name, seconds in others.items():
            if seconds is not None:
                ratios.setdefault(name, []).append(seconds / own)
    for name, found in ratios.items():
        print(f"{name}: {float(np.exp(np.mean(np.log(found)))):.2f} times our time (geometric mean of {len(found)})")


if __name__ == "__main__":
    main()
