"""The command line: the verbs of ``driver.py``. ``main`` turns every error into one clear line and an exit code.

Exit codes: 0 done, 1 something failed or a tool is missing, 2 usage, 3 unsupported or does not fit, 130 interrupted.
Imports of anything heavy are inside the verbs, so that ``--help`` is instant.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from gatewright.errors import GatewrightError, UsageError

if TYPE_CHECKING:
    from gatewright.frontend.model import Model

_ClickError: type[Exception] = typer.BadParameter.__mro__[2]
"""What every complaint about a command line's words derives from; typer carries its own copy of click from 0.20 on."""


INTERRUPTED = 130


class _Verbs(TyperGroup):
    """The group of all verbs: the one place where an exception becomes a message and an exit code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any) -> NoReturn:
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            code = super().main(words, prog_name or "gatewright", **extra)
            sys.stdout.flush()
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            code = _report(error, debug="--debug" in words)
        if code == INTERRUPTED:  # typer, too, gives this code for a KeyboardInterrupt
            print("interrupted; nothing half-written was left", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A trained model and a piece of hardware in; something that runs there out, with the evidence.",
)

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, a folder with one, or a file of another framework.")]
Models = Annotated[list[Path], typer.Argument(metavar="MODEL…", help="The first is the baseline.")]
ArtifactFolder = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact, made by gatewright compile.")]
KindName = Annotated[str | None, typer.Argument(metavar="[KIND]", help="cpu, gpu, tpu, part or board.")]

_TARGET = "target[:device][{option=value,…}]: cpu, hls:pynq-z2{io=stream}."
_DATA = "'FILE{part=train,range=0:200,labels=y}': .npz, .npy, .csv, .parquet or a folder of images."
_INPUT = "How raw data becomes an input: 'x{scale=0.0625,reshape=1x8x8,layout=NHWC->NCHW,source=X}'. Repeatable."
_INPUT_OF = "As in transform; 'NAME:x{…}' is for the model NAME alone. Repeatable."
_PIPELINE = "'fuse,prune{amount=0.5},quantize{bits=8,grid=pow2}'."
_METRIC = "accuracy, top5, auc, mse, psnr or agreement; accuracy{output=NAME}."
_COST = "What the recommended row has least of: latency, energy, peak_memory or artifact_size."
_CALIBRATION = "Data to quantize float models with, for targets that need it."
_ARTIFACT = "The artifact's folder: new, empty, or an artifact to replace."

TargetText = Annotated[str, typer.Option("--target", "-t", metavar="TARGET", help=_TARGET)]
TargetTexts = Annotated[str, typer.Option("--targets", "-t", metavar="T,T,…", help="ref,ort,cpu,hls:pynq-z2{io=stream}.")]
Data = Annotated[str, typer.Option("--data", metavar="FILE", help=_DATA)]
MaybeData = Annotated[str | None, typer.Option("--data", metavar="FILE", help=_DATA)]
Calibration = Annotated[str | None, typer.Option(metavar="FILE", help=_CALIBRATION)]
Inputs = Annotated[list[str] | None, typer.Option("--input", metavar="SPEC", help=_INPUT)]
InputsOf = Annotated[list[str] | None, typer.Option("--input", metavar="SPEC", help=_INPUT_OF)]
PipelineText = Annotated[str, typer.Option("--pipeline", "-p", metavar="PIPELINE", help=_PIPELINE)]
VerifyText = Annotated[str | None, typer.Option(metavar="HOW", help="Check after each pass: structure, numeric or none.")]
ModeText = Annotated[
    str | None, typer.Option(metavar="MODE", help="emulate, simulate or device. Default: the device, if it is this machine.")
]
PortText = Annotated[str | None, typer.Option("--port", metavar="PORT", help="The board's serial port, for mode device.")]
LevelText = Annotated[str | None, typer.Option("--level", metavar="LEVEL", help="What mode simulate runs (rtl): rtl, netlist or board.")]
Wave = Annotated[Path | None, typer.Option("--wave", metavar="FILE", help="Write all signals of mode simulate (rtl): .vcd or .fst.")]
MetricText = Annotated[str | None, typer.Option(metavar="NAME", help=_METRIC)]
MaxDrop = Annotated[float, typer.Option(min=0.0, metavar="X", help="How much of the metric the recommended row may lose.")]
CostText = Annotated[str, typer.Option(metavar="COST", help=_COST)]
Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="The first N samples only.")]
Dims = Annotated[str | None, typer.Option(metavar="NAME=N,…", help="Sizes of named axes: batch=1,sequence=128.")]
LimitsText = Annotated[
    str | None, typer.Option("--limits", metavar="NAME=N,…", help="What a model file may ask for: nodes=1000000,memory_bytes=16GiB.")
]
_TRUST = "Model files may run code of their own (pickles, Lambda layers), are read in this process, and links out of their folder followed."
Trust = Annotated[bool, typer.Option("--trust", help=_TRUST)]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
OutModel = Annotated[Path, typer.Option("--out", "-o", metavar="OUT.onnx", help="Where the transformed model goes; .gwz: Huffman-coded.")]
OutArtifact = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help=_ARTIFACT)]
OutArrays = Annotated[Path | None, typer.Option("--out", "-o", metavar="OUT.npz", help="Where the outputs go.")]
OutReport = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the report goes.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as one HTML file.")]
Checkpoints = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where training keeps where it is: the same command goes on after a kill.")
]
HowText = Annotated[str, typer.Option("--how", metavar="HOW", help="ensemble: average outputs, at the cost of all; average: weights.")]
OutStudy = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The study, its front, and the best model: new, or to go on.")]
CostTexts = Annotated[
    str | None, typer.Option("--costs", metavar="COST,…", help="latency, energy, bytes, file, LUT, DSP … as the target estimates.")
]
MethodTexts = Annotated[str | None, typer.Option("--methods", metavar="M,M,…", help="Families of passes. Default: all that are possible.")]
Seen = Annotated[bool, typer.Option("--seen", help="The model was trained on this data: each fold begins from one learned afresh.")]
Folds = Annotated[int, typer.Option(metavar="K", min=2, help="Cross-validation on the data.")]
Trials = Annotated[int, typer.Option(metavar="N", min=1, help="Candidates at most.")]
Budget = Annotated[str, typer.Option(metavar="TIME", help="Time for evaluations: 90s, 30m, 2h.")]
TestData = Annotated[str | None, typer.Option("--test", metavar="FILE", help="Data that chooses nothing, to judge the finalists on.")]
Finalists = Annotated[int, typer.Option(metavar="N", min=0, help="Points of the front that are compiled and measured.")]
Against = Annotated[str, typer.Option(metavar="E,E", help="Engines to compare with: ort, openvino; '' for none.")]
BenchTargets = Annotated[str, typer.Option("--target", "-t", metavar="T,T,…", help="Targets of this machine: cpu, 'cpu{threads=1}'.")]
BatchSizes = Annotated[str, typer.Option("--batch", metavar="N,N", help="Samples of one run.")]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="Of every engine. Default: all cores.")]
Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Each engine runs one block of runs per round.")]
Runs = Annotated[int, typer.Option(metavar="N", min=2, help="Runs of a block, the first two of which are dropped.")]
NoMemory = Annotated[bool, typer.Option("--no-memory", help="Leave out the memory, which takes a process for each engine.")]
Kernels = Annotated[bool, typer.Option("--kernels", help="Time each kernel of target cpu too, beside what the machine reaches.")]
MaybePipeline = Annotated[str | None, typer.Option("--pipeline", "-p", metavar="PIPELINE", help="What the targets run the model after.")]
Full = Annotated[bool, typer.Option("--full", help="Emulate the CNN's FPGA designs too: minutes more.")]
Json = Annotated[str | None, typer.Option("--json", metavar="PATH", help="Write the result as JSON; - is standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def inspect(
    model: ModelFile, dims: Dims = None, limits: LimitsText = None, trust: Trust = False, json: Json = None, debug: Debug = False
) -> None:
    """What is in a model: operators, weights, multiply-accumulates, quantization, history; or in an artifact: files, kernels."""
    given = _reading(dims, limits, trust)
    from gatewright.targets.base import Artifact

    from . import driver, views

    with _session(json) as (output, _):
        if (model / "manifest.json").is_file():
            made = Artifact.open(model, driver.context())
            output.result(views.artifact_json(made), views.opened_tables(made))
            return
        found = views.inspect(driver.load(model, **given))
        output.result(found.to_json(), found.tables())


@app.command()
def devices(kind: KindName = None, json: Json = None, debug: Debug = False) -> None:
    """The hardware that is known by name."""
    from . import views

    with _session(json) as (output, _):
        found = views.known_devices(kind)
        output.result([device.to_json() for device in found], views.device_tables(found))


@app.command()
def doctor(json: Json = None, debug: Debug = False) -> None:
    """What is installed, what is not, and what each missing thing disables."""
    from . import diagnosis

    with _session(json) as (output, _):
        found = diagnosis.diagnose()
        output.result(found.to_json(), found.tables())
    if not found.healthy:
        raise typer.Exit(1)


@app.command()
def check(
    model: ModelFile,
    target: TargetText,
    data: MaybeData = None,
    inputs: Inputs = None,
    dims: Dims = None,
    limits: LimitsText = None,
    trust: Trust = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Is the model supported, does it fit, and what would it cost? Runs no tool."""
    given = _reading(dims, limits, trust)
    from . import driver, views, words

    with _session(json) as (output, progress):
        loaded = driver.load(model, **given)
        found = driver.check(loaded, target, words.data_of(data, inputs), progress=progress)
        output.result(views.check_json(loaded, target, found), views.check_tables(loaded, target, found))
    if not found.ok:
        raise typer.Exit(3)


@app.command()
def transform(
    model: ModelFile,
    pipeline: PipelineText,
    out: OutModel,
    data: MaybeData = None,
    inputs: Inputs = None,
    dims: Dims = None,
    limits: LimitsText = None,
    trust: Trust = False,
    seed: Seed = 0,
    verify: VerifyText = None,
    checkpoints: Checkpoints = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """The model through a pipeline of passes."""
    given = _reading(dims, limits, trust)
    from . import driver, views, words
    from .config import verify_of

    with _session(json) as (output, progress):
        how = verify_of(verify, "--verify")
        words.model_file_of(out)
        samples = words.data_of(data, inputs)
        loaded = driver.load(model, **given)
        made = driver.transform(loaded, pipeline, samples, seed=seed, verify=how, progress=progress, checkpoints=checkpoints)
        made = made.renamed(out.stem)
        written = _write(made, out)
        found = views.inspect(made)
        output.result({"path": str(out), **found.to_json()}, [written, *views.said(made, loaded), "", *found.tables()])


@app.command()
def compile(
    model: ModelFile,
    target: TargetText,
    out: OutArtifact,
    data: MaybeData = None,
    inputs: Inputs = None,
    dims: Dims = None,
    limits: LimitsText = None,
    trust: Trust = False,
    seed: Seed = 0,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Compile for a target: ready to run where its compiler is a library, else files for its tools."""
    given = _reading(dims, limits, trust)
    from . import driver, views, words

    with _session(json) as (output, progress):
        samples = words.data_of(data, inputs)
        loaded = driver.load(model, **given)
        made = driver.compile(loaded, target, out, samples, seed=seed, progress=progress)
        output.result(views.artifact_json(made), views.artifact_tables(made))


@app.command()
def build(folder: ArtifactFolder, json: Json = None, debug: Debug = False) -> None:
    """Run the target's own tools on a compiled artifact."""
    from . import driver, views

    with _session(json) as (output, progress):
        made = driver.build(folder, progress=progress)
        output.result(views.artifact_json(made), views.artifact_tables(made))


@app.command()
def run(
    folder: ArtifactFolder,
    data: Data,
    mode: ModeText = None,
    port: PortText = None,
    level: LevelText = None,
    wave: Wave = None,
    out: OutArrays = None,
    inputs: Inputs = None,
    limit: Limit = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Run an artifact on data."""
    from gatewright.targets.base import Artifact

    from . import driver, session, views, words
    from .targetspec import is_here

    with _session(json) as (output, progress):
        artifact = Artifact.open(folder, driver.context(progress=progress, port=port, level=level, wave=wave))
        chosen = words.mode_of(mode, simulates=level is not None or wave is not None, at_port=port is not None)
        if port is not None and not artifact.target().has_port:
            raise UsageError(f"target {artifact.target().name} is reached through no port", hint="leave --port out")
        samples = words.data_of_artifact(artifact, data, inputs, output.note)
        with artifact.load(chosen) as executor:
            samples = samples if limit is None else samples.take(limit)
            ran = session.run(executor, samples, here=is_here(artifact.target()), progress=progress)
        if out is not None:
            session.save_npz(out, ran.outputs)
        output.result(views.run_json(ran, out), views.run_tables(ran, out))


@app.command()
def compare(
    models: Models,
    targets: TargetTexts,
    data: Data,
    metric: MetricText = None,
    limit: Limit = None,
    html: Html = None,
    max_drop: MaxDrop = 0.01,
    cost: CostText = "latency",
    calibration: Calibration = None,
    inputs: InputsOf = None,
    dims: Dims = None,
    limits: LimitsText = None,
    trust: Trust = False,
    seed: Seed = 0,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Several models on several targets: how right each is, and what it costs."""
    given = _reading(dims, limits, trust)
    from . import compare as comparison
    from . import driver, words

    with _session(json) as (output, progress):
        if html is not None:
            words.file_of(html)
        loaded = comparison.unique_names([driver.load(model, **given) for model in models])
        report = comparison.compare(
            loaded,
            targets,
            words.data_of_models(loaded, data, inputs or []),
            metric,
            limit=limit,
            max_drop=max_drop,
            cost=words.cost_of(cost),
            calibration=words.data_of(calibration, inputs) if calibration else None,
            seed=seed,
            progress=progress,
        )
        if html is not None:
            report.save_html(html)
        output.result(report.to_json(), [report.table(), *([f"report: {html}"] if html else [])])
    raise typer.Exit(report.exit_code)


@app.command()
def combine(
    models: Models,
    out: OutModel,
    how: HowText = "ensemble",
    dims: Dims = None,
    limits: LimitsText = None,
    trust: Trust = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Several variants of a model as one: their outputs averaged, or their weights."""
    given = _reading(dims, limits, trust)
    from . import driver, views, words

    with _session(json) as (output, _):
        words.model_file_of(out)
        made = driver.combine([driver.load(model, **given) for model in models], words.how_of(how)).renamed(out.stem)
        written = _write(made, out)
        found = views.inspect(made)
        output.result({"path": str(out), **found.to_json()}, [written, *found.tables()])


@app.command()
def optimize(
    model: ModelFile,
    target: TargetText,
    data: Data,
    out: OutStudy,
    max_drop: MaxDrop = 0.01,
    costs: CostTexts = None,
    metric: MetricText = None,
    methods: MethodTexts = None,
    seen: Seen = False,
    folds: Folds = 3,
    trials: Trials = 60,
    budget: Budget = "30m",
    test: TestData = None,
    finalists: Finalists = 3,
    inputs: Inputs = None,
    dims: Dims = None,
    limits: LimitsText = None,
    trust: Trust = False,
    seed: Seed = 0,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Search the pipeline that costs least on a target within a drop. The same command goes on after a kill."""
    given = _reading(dims, limits, trust)
    from . import driver, views, words

    with _session(json) as (output, progress):
        loaded = driver.load(model, **given)
        samples, held_out = words.data_of(data, inputs), words.data_of(test, inputs) if test is not None else None
        assert samples is not None
        found = driver.optimize(
            loaded,
            target,
            samples,
            max_drop=max_drop,
            costs=None if costs is None else costs.split(","),
            metric=metric,
            methods=None if methods is None else methods.split(","),
            seen=seen,
            folds=folds,
            trials=trials,
            budget_s=words.seconds_of(budget, "--budget"),
            test=held_out,
            finalists=finalists,
            out=out,
            seed=seed,
            progress=progress,
        )
        output.result(found.to_json(), views.front_tables(found, out))


@app.command()
def bench(
    models: Models,
    target: BenchTargets = "cpu",
    against: Against = "ort",
    batch: BatchSizes = "1,16",
    threads: Threads = None,
    pipeline: MaybePipeline = None,
    data: MaybeData = None,
    rounds: Rounds = 5,
    runs: Runs = 10,
    no_memory: NoMemory = False,
    kernels: Kernels = False,
    html: Html = None,
    inputs: InputsOf = None,
    dims: Dims = None,
    limits: LimitsText = None,
    trust: Trust = False,
    seed: Seed = 0,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Targets beside other engines on this machine: latency by turns, ratios, errors, memory."""
    given = _reading(dims, limits, trust)
    from . import bench as benchmark
    from . import compare as comparison
    from . import driver, words
    from .timing import Blocks

    with _session(json) as (output, progress):
        sizes = words.sizes_of(batch, "--batch")
        if html is not None:
            words.file_of(html)
        loaded = comparison.unique_names([driver.load(model, **given) for model in models])
        report = benchmark.bench(
            loaded,
            target,
            against,
            batches=sizes,
            threads=threads,
            pipeline=pipeline,
            data=words.data_of_models(loaded, data, inputs or []) if data is not None else words.data_of(data, inputs),
            blocks=Blocks(runs=runs, rounds=rounds),
            memory=not no_memory,
            kernels=kernels,
            seed=seed,
            progress=progress,
        )
        if html is not None:
            report.save_html(html)
        output.result(report.to_json(), [*report.tables(), *([f"report: {html}"] if html else [])])
    raise typer.Exit(report.exit_code)


@app.command()
def demo(out: OutReport = Path("demo-report"), full: Full = False, json: Json = None, debug: Debug = False) -> None:
    """Two digit classifiers as float, int8, int4 and pruned int8, on ref, ort, cpu and an emulated FPGA."""
    from .demo import run as run_demo

    with _session(json) as (output, progress):
        report, files = run_demo(out, full=full, progress=progress)
        output.result(report.to_json(), [report.table(), *(f"written: {file}" for file in files)])
    if report.exit_code == 1:
        raise typer.Exit(1)


def main() -> NoReturn:
    """The program ``gatewright``."""
    signal.signal(signal.SIGTERM, _terminated)
    app()
    raise SystemExit(0)


# What verbs share ---------------------------------------------------------------------------------------------------


def _session(json: str | None) -> Any:
    from .console import session

    return session(json)


def _reading(dims: str | None, limits: str | None, trust: bool) -> dict[str, Any]:
    """How models are loaded. The process that reads them starts here, so that its imports run beside ours."""
    from gatewright.frontend import isolate

    if not trust:
        isolate.warm()
    from . import words

    return {"dims": words.dims_of(dims), "limits": words.limits_of(limits), "trust": trust}


def _write(model: Model, out: Path) -> str:
    """The model in a file, coded where the file's name says so; what to tell of it."""
    from gatewright.frontend import coded

    if out.suffix != coded.SUFFIX:
        model.save(out)
        return f"written: {out}"
    size = coded.save_compressed(model, out)
    return f"written: {out}, {size.bytes:,} bytes; as ONNX it is {size.onnx_bytes:,}, {size.ratio:.1f} times as much"


def _report(error: Exception, debug: bool) -> int:
    """One clear line on stderr; the traceback only with ``debug``. The exit code."""
    from .console import error_line

    if isinstance(error, BrokenPipeError):  # the reader, such as head, has had enough
        sys.stdout = sys.stderr
        return 0
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    if debug or _debug_setting():
        traceback.print_exception(error, file=sys.stderr)
    code, message, hint = 1, "", None
    if isinstance(error, GatewrightError):
        code, message, hint = error.exit_code, error.message, error.hint
    elif isinstance(error, _ClickError):
        verb = getattr(getattr(error, "ctx", None), "command_path", "gatewright")
        code, message, hint = 2, str(getattr(error, "format_message", lambda: error)()), f"{verb} --help"
    elif isinstance(error, OSError):
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    elif isinstance(error, MemoryError):
        message, hint = "out of memory", "take fewer samples (--limit), or a smaller model"
    else:
        message = f"something unforeseen: {type(error).__name__}: {error}"
        hint = "the same command with --debug shows where; please report it"
    print(error_line(message, hint), file=sys.stderr)
    return code


def _debug_setting() -> bool:
    from .config import config

    try:
        return config().debug
    except UsageError:
        return False


def _terminated(number: int, frame: FrameType | None) -> None:
    """A polite kill: unwind, so that staged folders are removed."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
