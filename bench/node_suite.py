"""ONNX's own node tests, as shipped with the installed onnx, on our targets through ``gatewright.backend``.

    python bench/node_suite.py run -t 'cpu' -t 'cpu{fallback=none}' -t ref -t ort --results results.jsonl
    python bench/node_suite.py list > tests/conformance/node_tests.txt
    python bench/node_suite.py run --kind real --results results.jsonl    (the same of the other suites, see KINDS)
    python bench/node_suite.py table --results results.jsonl > docs/operators.md

Each test runs in a process of its own with a time limit, so that a crash or a hang is one test's result. ``run`` goes on where an
earlier one stopped (the last line of a test and target counts; ``--again STATUS`` runs those of a status again). To be quick, a test's
kernels are compiled in its own process, forked from one that has loaded TVM, and not in a third one.

passed    all outputs as onnx's own runner wants them: type, shape, values within the test's tolerance
refused   an UnsupportedError, which names the node or the rule
wrong     other values; failed: another error; crashed: the process died; hung: it took longer than the limit
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

ALONE, WHOLE = "cpu{fallback=none}", "cpu"
_PATIENCE = 10
"""How many times its seconds of a processor a test may take by the clock, on a busy machine."""
TARGETS = (ALONE, WHOLE, "ref", "ort")
KINDS = {
    "real": "whole networks without weights (`light_*`)", "simple": "small models", "pytorch-operator": "exported by PyTorch, operators",
    "pytorch-converted": "exported by PyTorch, layers",
}  # fmt: skip
"""onnx's other suites."""
STATUSES = ("passed", "refused", "wrong", "failed", "crashed", "hung")
STANDARD = frozenset({
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32,
    TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
})  # fmt: skip


PAGE = """# Operators

Which operators each target runs, by ONNX's own node tests as shipped with onnx {onnx}: the {tests} whose inputs and outputs are tensors
of float, double, float16, bool or integers of 8 to 64 bits, and whose operators are of the default domain or ai.onnx.ml
(`tests/conformance/node_tests.txt`). Made by `python bench/node_suite.py table`; do not edit it by hand.

`cpu` hands what it has no kernel for to ONNX Runtime or to the reference and says so; `cpu{{fallback=none}}` refuses it by name. *passed*:
type, shape and values as onnx's own test runner wants them. *refused*: an error that names the node and the rule, exit code 3.
Targets `hls` and `rtl` take quantized models only: what they refuse is in `gatewright check`."""
_RANDOM = "known defect: the values are random, and the engine does not draw those of the test"
_STRICT = "known defect: right to float32's precision; the test wants zeros to 1e-7"
_ROUNDED = "known defect: zeros to float64's precision; the test's are float32's, 2e-7, and it wants those to 1e-7"
_JOINED = "known defect: onnx's reference evaluator joins a Loop's numbers along an axis too many"


def defect(target: str, test: str) -> str | None:
    """Why a test that is not refused fails all the same, where that is known and no error of this project's own arithmetic."""
    if "bernoulli" in test or ("dropout" in test and target == "ort"):
        return _RANDOM
    if target == "ort" and test.startswith(("test_dft", "test_stft")):
        return _STRICT
    if target == ALONE and test.startswith("test_dft_inverse"):
        return _ROUNDED
    return _JOINED if target == WHOLE and test.startswith("test_range") else None


@dataclass(frozen=True)
class Test:
    """A test: its model's file, and the tolerance that onnx gives it."""

    name: str
    file: Path
    rtol: float
    atol: float

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.file)

    def samples(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """Inputs, and the outputs that onnx has for them. A light model (one of those without weights) has its outputs beside it, and
        the inputs that onnx's own runner makes."""
        if self.file.name != "model.onnx":
            graph = self.model.graph
            constants = {tensor.name for tensor in graph.initializer}
            inputs = [Runner.generate_dummy_data(value) for value in graph.input if value.name not in constants]
            yield inputs, _arrays(self.file.parent, f"{self.file.stem}_output")
            return
        for data in sorted(self.file.parent.glob("test_data_set_*")):
            yield _arrays(data, "input"), _arrays(data, "output")


def listed(kind: str = "node") -> list[Test]:
    """Those whose inputs and outputs are tensors of standard types, and whose operators are of the default domain or ai.onnx.ml."""
    found = [Test(case.name, file, case.rtol, case.atol) for case in load_model_tests(kind=kind) if (file := _file(case)) is not None]
    return sorted((test for test in found if _is_standard(test.model)), key=lambda test: test.name)


def _file(case: Any) -> Path | None:
    """The model of a test that comes with onnx itself; None for one that would have to be fetched."""
    if case.model_dir is not None:
        return Path(case.model_dir) / "model.onnx"
    inside = str(case.url).removeprefix("onnx/")
    return Path(onnx.__file__).parent / inside if inside != case.url else None


def _is_standard(model: onnx.ModelProto) -> bool:
    values = (value.type for value in (*model.graph.input, *model.graph.output))
    tensors = all(kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.elem_type in STANDARD for kind in values)
    return tensors and all(node.domain in ("", "ai.onnx", "ai.onnx.ml") for node in model.graph.node)


def one(test: Test, target: str) -> dict[str, Any]:
    """Run a test in this process."""
    import warnings

    from gatewright.errors import UnsupportedError
    from gatewright.runtime import backend

    warnings.simplefilter("ignore")
    try:
        prepared = backend.of(target).prepare(test.model)
        notes: tuple[str, ...] = ()
        for inputs, wanted in test.samples():
            got = prepared.run(inputs)
            notes = prepared.notes
            try:
                Runner.assert_similar_outputs(wanted, got, rtol=test.rtol, atol=test.atol)
            except (AssertionError, TypeError, ValueError) as error:
                return {"status": "wrong", "reason": _line(error), "notes": notes}
    except UnsupportedError as error:
        return {"status": "refused", "reason": _line(error), "notes": ()}
    except Exception as error:
        return {"status": "failed", "reason": f"{type(error).__name__}: {_line(error)}", "notes": ()}
    return {"status": "passed", "reason": "", "notes": notes}


def _arrays(folder: Path, kind: str) -> list[Any]:
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda file: int(file.stem.rsplit("_", 1)[1]))
    return [numpy_helper.to_array(TensorProto.FromString(file.read_bytes())) for file in files]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def _child(pipe: Connection, test: Test, target: str, cache: str, limit_s: float) -> None:
    os.environ["GATEWRIGHT_CACHE_DIR"] = cache
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.setsid()  # so that what it starts ends with it
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), int(limit_s)))
    found = one(test, target)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    pipe.send({**found, "cpu_s": round(sum(u.ru_utime + u.ru_stime for u in used), 2)})


def _warm() -> None:
    """Load what every test needs, and have kernels compiled in the process that asks for them."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    import onnxruntime  # noqa: F401

    import gatewright.runtime.backend
    import gatewright.targets.ort.target
    import gatewright.targets.ref.target
    import gatewright.targets.tvm.codegen
    import gatewright.targets.tvm.link
    import gatewright.targets.tvm.predict  # noqa: F401
    from gatewright.frontend import isolate
    from gatewright.targets.tvm import worker
    from gatewright.targets.tvm.target import CpuTarget

    # A test's process is contained as it is: its model is read in it, and not in one that it would start for that.
    isolate.AVAILABLE = False

    def compile_here(self: CpuTarget, job: dict[str, Any], folder: Path, context: Any) -> None:
        (folder / worker.JOB).write_text(json.dumps(job), encoding="utf-8")
        worker.main(folder)

    CpuTarget._compile = compile_here  # type: ignore[method-assign]
    # One run of everything here: what it loads and compiles once need not be loaded and compiled in each test.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["GATEWRIGHT_CACHE_DIR"] = cache
        for test in listed():
            if test.name in ("test_add", "test_nonzero_example"):
                for target in TARGETS:
                    one(test, target)


def run(chosen: list[Test], targets: list[str], results: Path, jobs: int, limit_s: float) -> None:
    """Everything that is not in ``results`` yet."""
    _warm()
    known = _read(results)
    todo = [(test, target) for target in targets for test in chosen if (target, test.name) not in known]
    print(f"{len(todo)} to run", file=sys.stderr)
    began, done = time.monotonic(), 0
    fork = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[Any, Test, str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="gatewright-suite-") as cache, open(results, "a", encoding="utf-8") as file:
        while todo or running:
            while todo and len(running) < jobs:
                test, target = todo.pop(0)
                alone = known.get((ALONE, test.name)) if target == WHOLE else None
                if alone and alone["status"] == "passed" and not alone["notes"]:
                    # Nothing is refused, so nothing falls back: it is the same artifact.
                    _tell(file, test, target, alone, time.monotonic())
                    continue
                ours, theirs = fork.Pipe(duplex=False)
                process = fork.Process(target=_child, args=(theirs, test, target, cache, limit_s), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (process, test, target, time.monotonic())
            for pipe in wait(list(running), timeout=0.5):
                process, test, target, started = running.pop(pipe)  # type: ignore[index]
                try:
                    found = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    process.join()
                    late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
                    reason = f"it took longer than {limit_s:.0f} s of a processor" if late else f"its process ended with {process.exitcode}"
                    found = {"status": "hung" if late else "crashed", "reason": reason, "notes": ()}
                process.join(5)
                known[target, test.name] = found
                _tell(file, test, target, found, started)
                done += 1
                if done % 50 == 0:
                    left = (time.monotonic() - began) / done * (len(todo) + len(running))
                    print(f"{done} done, {left / 60:.0f} min to go", file=sys.stderr)
            for pipe, (process, test, target, started) in list(running.items()):
                if time.monotonic() - started > _PATIENCE * limit_s:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    del running[pipe]
                    found = {"status": "hung", "reason": f"it took longer than {_PATIENCE * limit_s:.0f} s", "notes": ()}
                    _tell(file, test, target, found, started)


def _tell(file: Any, test: Test, target: str, found: dict[str, Any], started: float) -> None:
    line = {**found, "target": target, "test": test.name, "seconds": round(time.monotonic() - started, 2)}
    file.write(json.dumps(line) + "\n")
    file.flush()


def _read(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    if not results.exists():
        return {}
    lines = (json.loads(line) for line in results.read_text(encoding="utf-8").splitlines() if line.strip())
    return {(line["target"], line["test"]): line for line in lines}


def summary(results: Path) -> str:
    """Counts per target, and every test that is neither passed nor refused."""
    by_target: dict[str, Counter[str]] = defaultdict(Counter)
    bad: list[str] = []
    for (target, name), found in _read(results).items():
        by_target[target][found["status"]] += 1
        by_target[target]["all"] += 1
        if found["status"] == "passed":
            by_target[target]["as it is"] += not found["notes"]
        if found["status"] not in ("passed", "refused"):
            bad.append(f"{target:20} {found['status']:8} {name}: {found['reason'][:160]}")
    lines = [
        f"{target:20} {count['all']} tests: {', '.join(f'{count[status]} {status}' for status in STATUSES if count[status])} "
        f"({count['as it is']} passed as the file is, whole on the target)"
        for target, count in by_target.items()
    ]
    return "\n".join([*sorted(bad), *lines])


def table(results: Path) -> str:
    """The page of operator coverage: for each operator and target how many of its tests pass, and why the others do not."""
    found = _read(results)
    names = [test.name for test in listed()]
    targets = [target for target in TARGETS if all((target, name) in found for name in names)]
    by_operator: dict[str, list[Test]] = defaultdict(list)
    for test in listed():
        by_operator[_operator(test)].append(test)
    lines = [PAGE.format(onnx=onnx.__version__, tests=sum(map(len, by_operator.values()))), "", "## Totals", ""]
    lines += ["| target | " + " | ".join(("tests", *STATUSES)) + " |", "|---|" + "--:|" * (len(STATUSES) + 1)]
    for target in targets:
        count = Counter(found[target, name]["status"] for name in names)
        lines.append(f"| `{target}` | {sum(count.values())} | " + " | ".join(str(count[status]) for status in STATUSES) + " |")
    alone = [line for (own, name), line in found.items() if own == ALONE and line["status"] == "passed" and name in set(names)]
    as_it_is = sum(not line["notes"] for line in alone)
    lines += ["", f"Of the {len(alone)} that `{ALONE}` passes, {as_it_is} pass as the file is; for the others, inputs that hold shapes,"]
    lines += ["axes or weights were made constants, as a model has them."]
    lines += _others(found, targets)
    lines += ["", "## Operators", "", "| operator | tests | " + " | ".join(f"`{target}`" for target in targets) + " |"]
    lines.append("|---|--:|" + "--:|" * len(targets))
    for operator, own in sorted(by_operator.items()):
        passed = [sum(found.get((target, test.name), {}).get("status") == "passed" for test in own) for target in targets]
        lines.append(f"| {operator} | {len(own)} | " + " | ".join(str(count) for count in passed) + " |")
    for target in targets:
        reasons: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for operator, own in sorted(by_operator.items()):
            for test in own:
                line = found.get((target, test.name))
                if line is not None and line["status"] != "passed":
                    reasons[operator, line["status"], _why(target, line)].append(test.name)
        lines += ["", f"## Gaps of `{target}`", "", "| operator | tests | what | why |", "|---|--:|---|---|"]
        lines += [f"| {operator} | {len(names)} | {status} | {why} |" for (operator, status, why), names in reasons.items()]
    return "\n".join(lines) + "\n"


def _others(found: dict[tuple[str, str], dict[str, Any]], targets: list[str]) -> list[str]:
    """The table of onnx's other suites, as far as all of one was run: how many pass, and what the others say."""
    lines = []
    for kind, what in KINDS.items():
        tests = listed(kind)
        if not all((target, test.name) in found for target in targets for test in tests):
            continue
        each = [Counter(found[target, test.name]["status"] for test in tests) for target in targets]
        cells = (", ".join(f"{count[status]} {status}" for status in STATUSES if count[status]) for count in each)
        lines.append(f"| {kind}: {what} | {len(tests)} | " + " | ".join(cells) + " |")
    if not lines:
        return []
    head = ["| suite | tests | " + " | ".join(f"`{target}`" for target in targets) + " |", "|---|--:|" + "---|" * len(targets)]
    return ["", "## onnx's other suites", "", "Of the same onnx, what it brings with it and needs no network for.", "", *head, *lines]


def _operator(test: Test) -> str:
    """What a test tests: its node's operator; of an expanded definition, or a graph of several nodes, the group that it belongs to."""
    operators = {node.op_type for node in test.model.graph.node if node.op_type != "Constant"}
    if len(operators) == 1 and not test.name.endswith(("_expanded", "_expanded_ver18")):
        return operators.pop()
    return "(definitions by other operators)" if "_expanded" in test.name else "(several operators)"


def _why(target: str, line: dict[str, Any]) -> str:
    known = None if line["status"] == "refused" else defect(target, line["test"])
    return known or _reason(line["reason"])


def _reason(text: str) -> str:
    """A refusal without the names of a test's own nodes and tensors."""
    text = re.sub(r"^\S+ does not support node '[^']*' ", "", text)
    text = re.sub(r"^\S+ takes models of known shapes: ", "", text)
    text = re.sub(r"node '[^']*' ", "", re.sub(r"\(run it on [^)]*\)", "", text))
    text = re.sub(r"its output '[^']*'|output '[^']*'", "an output", re.sub(r"^'[^']*' (is empty).*", r"a tensor \1", text))
    return text.replace("|", "/").strip()[:150]


@contextlib.contextmanager
def _without(results: Path, again: list[str]) -> Iterator[None]:
    """Forget results of those statuses."""
    if again and results.exists():
        kept = [found for found in _read(results).values() if found["status"] not in again]
        results.write_text("".join(json.dumps(found) + "\n" for found in kept), encoding="utf-8")
    yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "list", "summary", "table"))
    parser.add_argument("-t", "--target", action="append", help=f"default: {', '.join(TARGETS)}")
    parser.add_argument("--kind", default="node", choices=("node", *KINDS))
    parser.add_argument("-k", "--only", default="", help="tests whose names contain this")
    parser.add_argument("--results", type=Path, default=Path("node_suite.jsonl"))
    parser.add_argument("--again", action="append", default=[], choices=STATUSES)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a processor for one test")
    given = parser.parse_args()
    if given.what == "list":
        print("\n".join(test.name for test in listed(given.kind)))
    elif given.what == "run":
        with _without(given.results, given.again):
            chosen = [test for test in listed(given.kind) if given.only in test.name]
            run(chosen, given.target or list(TARGETS), given.results, given.jobs, given.limit)
        print(summary(given.results))
    elif given.what == "table":
        print(table(given.results), end="")
    else:
        print(summary(given.results))


if __name__ == "__main__":
    main()
