"""What came of each kernel: which way it was made and why, for the manifest; and which kernels cannot be built at all."""

from __future__ import annotations

from typing import Any

import tvm

from gatewright.hw.device import Processor

from .codegen import Module, names
from .contained import Failure, Tell, each
from .link import llvm_target
from .search import Choices

_LIMIT_S = 120.0


def described(module: Module, choices: Choices | None) -> dict[str, Any]:
    """The manifest's "kernels" (by function, problem by problem) and "notes"."""
    kernels: dict[str, list[dict[str, Any]]] = {}
    ways: dict[str, int] = {}
    for function, asked in module.choices.items():
        for problem, choice in asked.items():
            measured = choices.measured.get(problem) if choices is not None else None
            way = "measured" if measured is not None and measured.choice == choice else "analytic"
            entry = {"problem": problem, "algorithm": choice.algorithm, "blocks": list(choice.blocks), "choice": way}
            kernels.setdefault(function, []).append(entry | ({"seconds": measured.seconds} if measured and way == "measured" else {}))
            ways[f"{way} {choice.algorithm}"] = ways.get(f"{way} {choice.algorithm}", 0) + 1
    notes = [f"kernel of {node}: {what}" for node, what in module.refused.items()]
    if ways:
        notes.append("kernels chosen: " + ", ".join(f"{count} {way}" for way, count in sorted(ways.items())))
    return {"kernels": kernels, "notes": [*notes, *(choices.notes if choices is not None else ())]}


def unbuildable(module: Module, device: Processor, jobs: int, tell: Tell) -> dict[str, str]:
    """By node, why LLVM or TVM's last passes crash on its kernel, refuse it or never end: each is built alone, in a forked process."""
    target, functions = llvm_target(device), list(module.functions)
    labels = {call.function: names(call.group) for call in reversed(module.calls)}

    def build(function: str, at: Tell) -> None:
        at(function)
        alone = tvm.IRModule({function: module.functions[function].with_attr("target", target)})
        tvm.tirx.build(alone, target=target).inspect_source("asm")

    found = {}
    for position, result in each(functions, build, processes=jobs, limit_s=_LIMIT_S):
        tell(f"checking the kernel of {labels[functions[position]]}")
        if isinstance(result, Failure):
            for call in module.calls:
                if call.function == functions[position]:
                    found[names(call.group)] = f"building it failed: {result.why}"
    return found
