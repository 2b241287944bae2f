"""Differential fuzzing: random valid graphs through the reference, ONNX Runtime, every exact pass and target cpu, held to one another.

    python tests/fuzz/differential.py --graphs 10000 --seed 0 --out fuzz-results        # goes on where it stopped
    python tests/fuzz/differential.py --graphs 10000 --usual 4                          # LLVM at -O0 for three graphs of four
    python tests/fuzz/differential.py --graphs 2000 --without cpu                       # minutes: no compilation
    python tests/fuzz/differential.py --graphs 1000 --also "tpu:v5e{aot=none}" # another target besides, on what it does not refuse
    python tests/fuzz/differential.py --only 1234 --out fuzz-results                    # one graph, by its seed

A graph that any two engines disagree on, or that one fails on in words that are no refusal, is shrunk to the fewest nodes that still
do and written to OUT as ``SEED-STAGE.onnx`` with its inputs (``.npz``). What an engine refuses by name is counted; OUT/graphs.jsonl says of
each graph which engines agreed. Each chunk runs in
a process of its own, so that a crash or a hang is one graph's result; for target cpu the graphs of a chunk are one model.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from agreement import SINGLE, Judge
from random_base import Array, Graph, part
from random_graphs import random_graph

from gatewright.errors import GatewrightError, ModelError, PassError, UnsupportedError
from gatewright.frontend.data import Dataset
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline

Values = dict[str, Array]
PASSES = ("fold", "fuse", "fuse,equalize", "fuse,smoothquant")
STAGES = ("load", "reload", "oracle", "samples", *PASSES, "ort", "quantize", "cpu")
ALONE, HELPED = "cpu{fallback=none}", "cpu"
"""Targets, and the names of their stages: graphs that target cpu takes whole, and the others."""
CHUNK = 40
LIMIT_S = 20.0
"""Of a processor, for one graph."""


@dataclass
class Found:
    """What came of one graph, or of many."""

    checked: Counter[str] = field(default_factory=Counter)
    """Graphs that came through, by stage."""
    refused: Counter[str] = field(default_factory=Counter)
    """"stage: operator: rule"."""
    wrong: list[tuple[str, str]] = field(default_factory=list)
    """Stage and what is wrong there."""
    fallbacks: int = 0
    """Of graphs that target cpu does not take whole."""

    def attempt(self, stage: str, check: Callable[[], object]) -> Any:
        """Run one stage; what it gives, or None where it was refused or is wrong. A check that gives text says what is wrong."""
        try:
            found = check()
        except UnsupportedError as error:
            self.refused[f"{stage}: {_rule(error)}"] += 1
            return None
        except ModelError as error:
            if _is_refusal(error):
                self.refused[f"{stage}: {_rule(error)}"] += 1
            else:
                self.wrong.append((stage, f"ModelError: {error.message}"))
            return None
        except Exception as error:  # whatever else comes out of an engine is a defect, in its own words
            if isinstance(error, PassError) and " failed on " not in error.message and "says that it is exact" not in error.message:
                self.refused[f"{stage}: {_rule(error)}"] += 1
            else:
                self.wrong.append((stage, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
            return None
        if isinstance(found, str):
            self.wrong.append((stage, found))
            return None
        self.checked[stage] += 1
        return found


def _is_refusal(error: ModelError) -> bool:
    """Whether a model error says what is not supported of a valid graph, and not that the graph is broken."""
    return not re.search(r"is not valid ONNX|contradict|come to rest|cannot be computed|canonical", error.message)


def _rule(error: GatewrightError) -> str:
    """What was refused, without the names of one graph."""
    op = getattr(error, "op", "")
    return f"{op}: " + re.sub(r"'[^']*'|\d+", "…", getattr(error, "rule", "") or error.message)[:110]


def run_graph(graph: Graph, without: Iterable[str] = ()) -> tuple[Found, Model | None, Judge | None]:
    """All stages but cpu's; the canonical model and its judge for that one."""
    found, skipped = Found(), set(without)

    def stage(name: str, check: Callable[[], object]) -> Any:
        return None if name in skipped else found.attempt(name, check)

    model: Model | None = found.attempt("load", lambda: load(onnx.ModelProto.FromString(graph.proto.SerializeToString()), name="random"))
    if model is None:
        return found, None, None
    judge: Judge | None = found.attempt("ref", lambda: Judge(model, graph.feeds))
    if judge is None:
        return found, model, None
    quantized = graph.is_quantized
    single = not SINGLE.isdisjoint(graph.operators)
    wanted = {value.name: graph.values[value.name] for value in graph.proto.graph.output}
    stage("oracle", lambda: _text(judge.compare(wanted, as_float=quantized, folded=True, single=single)))
    stage("samples", lambda: _samples(model, graph.feeds, judge))
    stage("reload", lambda: _reload(model))
    for text in PASSES:
        stage(text, lambda text=text: _text(_compared(judge, _after(model, text, graph.feeds), quantized)))  # type: ignore[misc]
    ort = "ort{exact=true}" if quantized else "ort"
    stage("ort", lambda: _text(judge.compare(_on(model, ort, graph.feeds), as_float=quantized, single=single, wide=True)))
    return found, model, judge


def _compared(judge: Judge, got: Values, quantized: bool) -> object:
    """After an exact pass. A Relu that does nothing parts what is then one integer operation: a tie may round to the other side."""
    found = judge.compare(got)
    return judge.compare(got, as_float=True) if found is not None and quantized else found


def _text(difference: object) -> object:
    return True if difference is None else str(difference)


def _samples(model: Model, feeds: Values, judge: Judge) -> object:
    """Where axis 0 is the samples', one at a time gives the same."""
    reference = Reference(model)
    count = {array.shape[0] for array in feeds.values() if array.ndim}
    if not feeds or not reference.per_sample or count == {1} or len(count) != 1:
        return True
    each = [reference.run({name: array[i : i + 1] for name, array in feeds.items()}) for i in range(count.pop())]
    if not each:
        return True
    return _text(judge.compare({name: np.concatenate([one[name] for one in each]) for name in judge.wanted}))


def _reload(model: Model) -> object:
    again = load(ir.to_proto(model.ir), name=model.name)
    return True if again.digest == model.digest else "loading its canonical form again changes it"


def _after(model: Model, text: str, feeds: Values) -> Values:
    pipeline = Pipeline.parse(text)
    samples = {array.shape[:1] for array in feeds.values()}
    data = Dataset(dict(feeds)) if len(samples) == 1 and samples.isdisjoint({(), (0,)}) else None
    if pipeline.needs_data and (data is None or not Reference(model).per_sample):
        return Reference(model).run(feeds)
    return Reference(pipeline.run(model, PassContext(data=data), verify="structure")).run(feeds)


def _on(model: Model, target: str, feeds: Values) -> Values:
    """Run on a target, without an artifact's folder where that is all the same."""
    from gatewright.runtime.targetspec import resolve
    from gatewright.targets.ort.target import OrtExecutor

    bound = resolve(target)
    for problem in bound.check(model).problems:
        raise problem
    return OrtExecutor(bound.legalize(model), bound.options).run_native(feeds)


# ---- target cpu ---------------------------------------------------------------------------------------------------------


def joined(models: Sequence[Model]) -> Model:
    """Many models side by side in one; names of the i-th begin with ``gi_``."""
    nodes, inputs, outputs, weights = [], [], [], []
    for number, model in enumerate(models):
        proto = onnx.compose.add_prefix(ir.to_proto(model.ir), f"g{number}_")
        nodes += proto.graph.node
        inputs += proto.graph.input
        outputs += proto.graph.output
        weights += proto.graph.initializer
    graph = onnx.helper.make_graph(nodes, "joined", inputs, outputs, weights)
    return load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), name="joined")


def compiled_run(models: Sequence[Model], feeds: Sequence[Values], target: str) -> list[Values]:
    """What the target gives for each, all compiled as one."""
    from gatewright.runtime.driver import compile as compile_model

    whole = joined(models)
    given = {f"g{i}_{name}": array for i, one in enumerate(feeds) for name, array in one.items()}
    with compile_model(whole, target).load() as executor:
        found = executor.run_native({info.name: given[info.name] for info in whole.inputs})
    return [{info.name: found[f"g{i}_{info.name}"] for info in model.outputs} for i, model in enumerate(models)]


def on_others(ready: Sequence[tuple[int, Model, Judge, Graph]], into: dict[int, Found], targets: Iterable[str]) -> None:
    """The graphs on further targets, where those do not refuse them."""
    from gatewright.runtime.targetspec import resolve

    for target in targets:
        bound, taken = resolve(target), []
        for one in ready:
            problems = into[one[0]].attempt(f"{target} check", lambda one=one, bound=bound: (list(bound.check(one[1]).problems),))  # type: ignore[misc]
            for problem in problems[0] if problems else []:
                into[one[0]].refused[f"{target}: {_rule(problem)}"] += 1
            if problems is not None and not problems[0]:
                taken.append(one)
        _group(taken, into, target)


def on_cpu(ready: Sequence[tuple[int, Model, Judge, Graph]], into: dict[int, Found]) -> None:
    """The graphs on target cpu; where all together fail, each alone."""
    from gatewright.runtime.targetspec import resolve

    whole, parted = [], []
    alone = resolve(ALONE)
    for one in ready:
        problems = into[one[0]].attempt("cpu check", lambda one=one: (list(alone.check(one[1]).problems),))  # type: ignore[misc]
        if problems is None:
            continue
        for problem in problems[0]:
            into[one[0]].refused[f"cpu: {_rule(problem)}"] += 1
        into[one[0]].fallbacks += bool(problems[0])
        (parted if problems[0] else whole).append(one)
    _group(whole, into, ALONE)
    _group(parted, into, HELPED)


def _group(group: Sequence[tuple[int, Model, Judge, Graph]], into: dict[int, Found], target: str) -> None:
    if not group:
        return
    try:
        results = compiled_run([model for _, model, _, _ in group], [graph.feeds for *_, graph in group], target)
    except Exception as error:
        if len(group) == 1:
            seed, model, _, graph = group[0]
            into[seed].attempt(target, lambda: compiled_run([model], [graph.feeds], target))
            return
        # The one whose node is named, and the others; where none is, halves.
        named = re.match(r"g(\d+)_", str(getattr(error, "node", "")))
        parts = (
            (group[i : i + 1], [*group[:i], *group[i + 1 :]]) if named and (i := int(named[1])) < len(group)
            else (group[: len(group) // 2], group[len(group) // 2 :])
        )  # fmt: skip
        for some in parts:
            _group(some, into, target)
        return
    for (seed, _, judge, graph), got in zip(group, results, strict=True):
        single = not SINGLE.isdisjoint(graph.operators)
        into[seed].attempt(target, lambda judge=judge, got=got, single=single: _text(judge.compare(got, single=single)))  # type: ignore[misc]


def quick_compiler() -> None:
    """Kernels are compiled in the process that asks for them: a chunk has one of its own already."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from gatewright.targets.tvm import worker
    from gatewright.targets.tvm.target import CpuTarget

    def compile_here(self: CpuTarget, job: dict[str, Any], folder: Path, context: Any) -> None:
        (folder / worker.JOB).write_text(json.dumps(job), encoding="utf-8")
        worker.main(folder)

    CpuTarget._compile = compile_here  # type: ignore[method-assign]


def optimize(level: int | None) -> None:
    """LLVM's level from here on; None is the product's own. Nearly all of a compilation is LLVM's, and 0 takes a fifth of it."""
    if level is None:
        return
    import tvm

    from gatewright.targets.tvm import link

    usual = link.llvm_target
    link.llvm_target = lambda device: tvm.target.Target({**usual(device).export(), "opt-level": level})


# ---- shrinking ----------------------------------------------------------------------------------------------------------


def all_wrong(graph: Graph, without: Iterable[str], stage: str) -> list[tuple[str, str]]:
    skipped = {*without, *(other for other in STAGES if other not in (stage, "load"))}
    found, model, judge = run_graph(graph, skipped)
    if model is not None and judge is not None and not found.wrong and stage not in STAGES[:-1]:
        if stage.startswith("cpu"):
            on_cpu([(0, model, judge, graph)], {0: found})
        else:
            on_others([(0, model, judge, graph)], {0: found}, [stage.removesuffix(" check")])
    return [(where, what) for where, what in found.wrong if where == stage]


def shrunk(graph: Graph, without: Iterable[str], stage: str) -> tuple[Graph, str]:
    """The fewest nodes at which ``stage`` still is wrong (ddmin: Zeller, Hildebrandt, Simplifying and Isolating Failure-Inducing Input)."""
    keep = [i for i, node in enumerate(graph.proto.graph.node) if node.op_type != "Constant"]

    def fails(nodes: list[int]) -> str | None:
        try:
            smaller = part(graph, nodes)
            if not smaller.proto.graph.output:
                return None
            wrong = all_wrong(smaller, without, stage)
        except Exception:
            return None
        return wrong[0][1] if wrong else None

    why = fails(keep)
    if why is None:
        return graph, "it does not happen again"
    pieces = 2
    while len(keep) > 1:
        size = max(1, len(keep) // pieces)
        chunks = [keep[i : i + size] for i in range(0, len(keep), size)]
        candidates = [*chunks, *([x for c in chunks if c is not chunk for x in c] for chunk in chunks)]
        for candidate in candidates:
            if 0 < len(candidate) < len(keep) and (again := fails(candidate)) is not None:
                keep, why, pieces = candidate, again, 2
                break
        else:
            if size == 1:
                break
            pieces = min(len(keep), 2 * pieces)
    return part(graph, keep), why


# ---- running ------------------------------------------------------------------------------------------------------------


def run_chunk(seeds: Sequence[int], without: Sequence[str], out: Path | None, also: Sequence[str] = ()) -> dict[str, Any]:
    """What came of these graphs, as JSON."""
    warnings.simplefilter("ignore")
    into: dict[int, Found] = {}
    ready: list[tuple[int, Model, Judge, Graph]] = []
    operators: Counter[str] = Counter()
    graphs = {seed: random_graph(seed) for seed in seeds}
    for seed, graph in graphs.items():
        operators += graph.operators
        into[seed], model, judge = run_graph(graph, without)
        if model is not None and judge is not None:
            ready.append((seed, model, judge, graph))
            quantized = None
            if "quantize" not in without and _can_be_quantized(seed, model, graph):
                quantized = into[seed].attempt("quantize", partial(_quantized, seed, model, graph))
            if quantized is not None:
                into[-seed - 1] = Found()
                judge = into[-seed - 1].attempt("ref", lambda model=quantized, graph=graph: Judge(model, graph.feeds))  # type: ignore[misc]
                if judge is not None:
                    ready.append((-seed - 1, quantized, judge, graph))
    if "cpu" not in without:
        on_cpu(ready, into)
    on_others(ready, into, also)
    total = Found()
    failures = []
    each = []
    for seed, found in into.items():
        own = seed if seed >= 0 else -seed - 1
        each.append({
            "seed": own, "after_quantize": seed < 0, "digest": hashlib.sha256(graphs[own].proto.SerializeToString()).hexdigest()[:16],
            "nodes": len(graphs[own].proto.graph.node), "double": graphs[own].is_double, "agreed": sorted(found.checked),
            "refused": sorted(found.refused), "verdict": f"wrong: {found.wrong}" if found.wrong else "agreed",
        })  # fmt: skip
        total.checked += found.checked
        total.refused += found.refused
        total.fallbacks += found.fallbacks
        for stage, what in found.wrong:
            entry = {"seed": own, "stage": stage, "what": what, "after_quantize": seed < 0}
            if out is not None and seed >= 0:
                small, why = shrunk(graphs[own], without, stage)
                entry |= {"small": sorted(small.operators.elements()), "why": why}
                name = f"{own}-{re.sub('[^a-z]+', '-', stage)}"
                onnx.save(small.proto, out / f"{name}.onnx")
                np.savez(out / f"{name}.npz", **small.feeds)
            failures.append(entry)
    return {
        "seeds": [min(seeds), max(seeds)], "graphs": len(seeds), "operators": operators, "checked": total.checked, "refused": total.refused,
        "fallbacks": total.fallbacks, "failures": failures, "each": each,
    }  # fmt: skip


def _can_be_quantized(seed: int, model: Model, graph: Graph) -> bool:
    """A third of the float graphs that treat axis 0 as samples."""
    samples = {array.shape[:1] for array in graph.feeds.values()}
    floats = all(array.dtype == np.float32 and array.size for array in graph.feeds.values())
    return seed % 3 == 0 and not graph.is_quantized and floats and len(samples) == 1 and Reference(model).per_sample


def _quantized(seed: int, model: Model, graph: Graph) -> Model:
    """The graph quantized with options of its seed's."""
    random = np.random.default_rng(seed)
    bits, weight_bits = int(random.choice([4, 5, 7, 8, 8])), int(random.choice([4, 8, 8]))
    grid, per = random.choice(["affine", "symmetric", "pow2"]), random.choice(["tensor", "channel"])
    text = f"fuse,quantize{{bits={bits},weight_bits={weight_bits},grid={grid},per={per}}}"
    return Pipeline.parse(text).run(model, PassContext(data=Dataset(dict(graph.feeds))), verify="structure")


def _child(
    pipe: Any, seeds: Sequence[int], without: Sequence[str], out: Path | None, cache: str, level: int | None, also: Sequence[str]
) -> None:
    os.environ["GATEWRIGHT_CACHE_DIR"] = cache
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    limit_s = int(LIMIT_S * (1 + len(also)) * (len(seeds) + 5))
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 5))
    optimize(level)
    pipe.send({**run_chunk(seeds, without, out, also), "llvm": level})


def contained(
    seeds: Sequence[int], without: Sequence[str], out: Path | None, level: int | None, also: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A chunk in a process of its own; where that dies, its graphs one by one."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="gatewright-fuzz-") as cache:
        process = fork.Process(target=_child, args=(theirs, seeds, without, out, cache, level, also))
        process.start()
        theirs.close()
        try:
            return [ours.recv()]
        except EOFError:
            process.join()
            if len(seeds) > 1:
                return [found for seed in seeds for found in contained([seed], without, out, level, also)]
            failure = {"seed": seeds[0], "stage": "process", "what": f"it ended with {process.exitcode}", "after_quantize": False}
            each = [{"seed": seeds[0], "verdict": f"wrong: the process ended with {process.exitcode}"}]
            return [{
                "seeds": [seeds[0]] * 2, "graphs": 1, "operators": {}, "checked": {}, "refused": {}, "fallbacks": 0,
                "failures": [failure], "each": each, "llvm": level,
            }]  # fmt: skip
        finally:
            process.join()


def summary(lines: Sequence[dict[str, Any]]) -> str:
    operators, checked, refused = Counter[str](), Counter[str](), Counter[str]()
    failures = [failure for line in lines for failure in line["failures"]]
    for line in lines:
        operators.update(line["operators"])
        checked.update(line["checked"])
        refused.update(line["refused"])
    text = [f"{sum(line['graphs'] for line in lines)} graphs, {sum(operators.values())} nodes of {len(operators)} operators"]
    text += ["  " + ", ".join(f"{op} {count}" for op, count in sorted(operators.items()))]
    text += ["agreed: " + ", ".join(f"{stage} {count}" for stage, count in checked.items())]
    text += [f"on cpu with help from other engines: {sum(line['fallbacks'] for line in lines)}", "refused by name:"]
    text += [f"  {count:5} {what}" for what, count in refused.most_common()]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for failure in failures:
        kinds.setdefault(f"{failure['stage']}: {' '.join(failure.get('small', []))}", []).append(failure)
    text += [f"{len(failures)} wrong, of {len(kinds)} kinds"]
    for kind, those in sorted(kinds.items(), key=lambda item: -len(item[1])):
        shown = those[0].get("why") or those[0]["what"]
        text.append(f"  {len(those):4} {kind} (seeds {', '.join(str(f['seed']) for f in those[:4])}): {shown[:220]}")
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first graph; the others follow")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-results"))
    parser.add_argument("--without", action="append", default=[], choices=STAGES)
    parser.add_argument("--also", action="append", default=[], metavar="TARGET", help="another target, where it does not refuse")
    parser.add_argument("--only", type=int, help="this one graph, in this process")
    parser.add_argument(
        "--usual", type=int, default=1, help="one chunk in so many is compiled as the product does, the others by a quick LLVM"
    )
    parser.add_argument("--summary", action="store_true", help="only print what is there")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    results = given.out / "chunks.jsonl"
    quick_compiler()
    if given.only is not None:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["GATEWRIGHT_CACHE_DIR"] = cache
            print(summary([run_chunk([given.only], given.without, given.out, given.also)]))
        return 0
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []
    if not given.summary:
        known = {seed for line in lines for seed in range(line["seeds"][0], line["seeds"][1] + 1)}
        todo = [seed for seed in range(given.seed, given.seed + given.graphs) if seed not in known]
        if "cpu" not in given.without:
            importlib.import_module("gatewright.targets.tvm.link")  # every chunk's process then has it
        began, done = time.monotonic(), 0
        chunks = [todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK)]

        def run(seeds: Sequence[int]) -> list[dict[str, Any]]:
            return contained(seeds, given.without, given.out, None if seeds[0] // CHUNK % given.usual == 0 else 0, given.also)

        with contextlib.ExitStack() as stack:
            file, graphs = (stack.enter_context(open(given.out / name, "a", encoding="utf-8")) for name in (results.name, "graphs.jsonl"))
            if given.jobs > 1:
                from concurrent.futures import ThreadPoolExecutor

                pool = stack.enter_context(ThreadPoolExecutor(given.jobs))
                found = pool.map(run, chunks)
            else:
                found = map(run, chunks)
            for some in found:
                for line in some:
                    graphs.writelines(json.dumps({**one, "llvm": line["llvm"]}) + "\n" for one in line.pop("each"))
                    graphs.flush()
                    lines.append(line)
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    done += line["graphs"]
                wrong = sum(len(line["failures"]) for line in lines)
                print(f"{done} of {len(todo)} graphs, {time.monotonic() - began:.0f} s, {wrong} wrong", file=sys.stderr, flush=True)
    print(summary(lines))
    return 1 if any(line["failures"] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
