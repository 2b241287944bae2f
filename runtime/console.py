"""What people see in a terminal: progress on stderr, tables on stdout, one line for an error."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.progress import Progress as RichProgress
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text as RichText

from gatewright.hw.measurement import Measurement
from gatewright.progress import Progress
from gatewright.targets.parts import Share

from .atomic import write_file
from .config import config
from .report import Report, Row, dumps, shorten, show

STATUS_STYLES = {"ok": "green", "unsupported": "yellow", "does_not_fit": "yellow", "tool_missing": "red", "failed": "red"}
SOURCE_MARKS = {"estimated": "≈", "emulated": "ᵉ", "simulated": "ˢ", "synthesized": "ᵗ", "measured": "", "published": "ᵖ"}
"""Shown beside a figure that no clock or meter read."""
_LEGEND = {"≈": "estimated", "ᵉ": "emulated", "ˢ": "simulated", "ᵗ": "synthesized", "ᵖ": "published"}
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it, and what turns the direction of writing round."""
_PLAIN_AFTER_S = 1.0
_PLAIN_EVERY_S = 5.0


def plain(text: str) -> str:
    """``text`` with what a terminal would obey written out: a model's names may hold anything."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class Text(RichText):
    """rich's text, of which a terminal only ever gets the styles that are its own."""

    def __init__(self, text: str = "", *arguments: Any, **options: Any) -> None:
        super().__init__(plain(text), *arguments, **options)

    def append(self, text: RichText | str, style: Any = None) -> Self:
        super().append(plain(text) if isinstance(text, str) else text, style)
        return self


def stdout(color: bool) -> Console:
    """The console for results. A pipe gets no escape codes and no wrapped tables."""
    return Console(no_color=not color, width=None if sys.stdout.isatty() else 250, highlight=False, soft_wrap=False)


def stderr(color: bool) -> Console:
    """The console for errors, notes and progress."""
    return Console(stderr=True, no_color=not color, highlight=False, soft_wrap=True)


@contextmanager
def progress(color: bool) -> Iterator[Progress]:
    """A listener that shows a spinner on a terminal (stderr), and plain lines elsewhere."""
    console = stderr(color)
    if console.is_terminal:
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        with RichProgress(*columns, console=console, transient=True) as shown:
            yield _TerminalProgress(shown)
        return
    plain = _PlainProgress(sys.stderr)
    try:
        yield plain
    finally:
        plain.stop()


class _TerminalProgress:
    """One line, rewritten, with the time that the step has taken."""

    def __init__(self, shown: RichProgress) -> None:
        self._shown = shown
        self._task: TaskID | None = None
        self._what = ""

    def __call__(self, what: str, done: int | None = None, total: int | None = None) -> None:
        line = _line(what, done, total)
        if self._task is None:
            self._task = self._shown.add_task(line, total=None)
        elif what == self._what:
            self._shown.update(self._task, description=line)
        else:
            self._shown.reset(self._task, description=line)
        self._what = what


class _PlainProgress:
    """A line for each step that takes over a second, and one every five seconds while it goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""
        self._what = ""
        self._since = 0.0
        self._due = float("inf")
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __call__(self, what: str, done: int | None = None, total: int | None = None) -> None:
        self._line = _line(what, done, total)
        if what != self._what:
            self._what, self._since = what, time.monotonic()
            self._due = self._since + _PLAIN_AFTER_S

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(0.2):
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + _PLAIN_EVERY_S
                seconds = time.monotonic() - self._since
                print(self._line if seconds < _PLAIN_EVERY_S else f"{self._line} ({seconds:.0f} s)", file=self._stream, flush=True)


def _line(what: str, done: int | None, total: int | None) -> str:
    what = plain(shorten(what, 120))
    if done is None:
        return f"{what} …"
    return f"{what} … {done}" if total is None else f"{what} … {done}/{total}"


def error_line(message: str, hint: str | None = None) -> str:
    """``error: … / try: …`` on as many lines as the message has."""
    return plain(f"error: {message}" + (f"\n  try: {hint}" if hint else ""))


def figure(measurement: Measurement | None) -> Text:
    """A figure with the mark of its source."""
    if measurement is None:
        return Text("–", style="dim")
    mark = SOURCE_MARKS[measurement.source]
    return Text(f"{mark}{show(measurement)}" if mark == "≈" else f"{show(measurement)}{mark}")


def legend(measurements: Iterable[Measurement | None]) -> str:
    """What the marks mean that were used."""
    used = {SOURCE_MARKS[m.source] for m in measurements if m is not None}
    return ", ".join(f"{mark} {meaning}" for mark, meaning in _LEGEND.items() if mark in used)


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[RenderableType]], right: Sequence[str] = ()) -> Table:
    """A plain table; text cells are never read as markup."""
    made = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    for column in columns:
        made.add_column(Text(column), justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def facts(pairs: Mapping[str, str]) -> Table:
    """Two columns: what, and its value."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for what, value in pairs.items():
        made.add_row(Text(what), Text(value))
    return made


def report_table(report: Report) -> RenderableType:
    """A table of the rows, why some of them did not run, and the recommendation."""
    measured = ("latency", "throughput", "emulation", "energy", "memory")
    columns = ("model", "target", report.metric, "≠ ref", "top-1 changed", *measured, "resources", "build")
    shown = [_row_cells(row) for row in report.rows]
    used = [m for row in report.rows for m in _figures(row)]
    parts: list[RenderableType] = [table(None, columns, shown, right=columns[2:10])]
    for row in report.rows:
        if row.status != "ok":
            status = Text(f"{row.status.replace('_', ' ')}: ", style=STATUS_STYLES[row.status])
            parts.append(Text.assemble(f"{row.model} on {row.target}: ", status, row.reason or ""))
        elif row.first_diverging_layer:
            parts.append(Text(f"{row.model} on {row.target}: differs from ref, first in {row.first_diverging_layer}", style="yellow"))
        parts += [Text(line, style="yellow") for line in parts_lines(f"{row.model} on {row.target}", row.parts)]
    if legend(used):
        parts.append(Text(f"{legend(used)}; unmarked figures are measured", style="dim"))
    if report.recommendation:
        parts.append(Text.assemble(("recommended: ", "bold"), str(report.recommendation)))
    return Group(*parts)


def parts_lines(what: str, shares: Sequence[Share]) -> list[str]:
    """For each part of a model that is not on its own target: how much of it runs where, why, and what that took."""
    macs, nodes, seconds = (sum(getattr(share, key) or 0 for share in shares) for key in ("macs", "nodes", "seconds"))
    lines = []
    for share in shares:
        if share.reasons:
            of_work = f", {share.macs / macs:.1%} of the multiply-accumulates" if share.macs else ""
            of_time = f", {share.seconds / seconds:.1%} of the time" if share.seconds else ""
            why = "; ".join(f"{node}: {reason}" for node, reason in list(share.reasons.items())[:3])
            more = f"; and {len(share.reasons) - 3} more" if len(share.reasons) > 3 else ""
            lines.append(f"{what}: {share.nodes} of {nodes} operations run on {share.target}{of_work}{of_time} ({why}{more})")
    if lines:
        handed = sum(share.received_bytes for share in shares)
        lines.append(f"{what}: {len(shares)} parts, {handed:,} bytes handed between them in each run")
    return lines


def _row_cells(row: Row) -> list[RenderableType]:
    mismatching = "–" if row.error_ref is None else str(row.error_ref.mismatching_samples)
    changed = "–" if row.error_baseline is None or row.error_baseline.top1_changed is None else str(row.error_baseline.top1_changed)
    resources = ", ".join(f"{show(m)}" for m in (row.resources or {}).values())
    marks = {SOURCE_MARKS[m.source] for m in (row.resources or {}).values()}
    return [
        row.model,
        row.target,
        figure(row.metric) if row.status == "ok" else Text(row.status.replace("_", " "), style=STATUS_STYLES[row.status]),
        mismatching,
        changed,
        figure(row.latency),
        figure(row.throughput),
        figure(row.emulation_rate),
        figure(row.energy),
        figure(row.peak_memory),
        f"{''.join(marks)}{resources}" if resources else "",
        figure(row.build_time),
    ]


def _figures(row: Row) -> list[Measurement | None]:
    return [
        row.metric,
        row.latency,
        row.throughput,
        row.emulation_rate,
        row.energy,
        row.peak_memory,
        row.build_time,
        *(row.resources or {}).values(),
    ]


class Output:
    """Where a verb's result goes: tables on stdout; as JSON to a file, or to a stdout that holds nothing else."""

    def __init__(self, json: str | None, color: bool) -> None:
        self._json = json
        self._color = color
        self._value: object = None
        self._shown: list[RenderableType] = []

    def result(self, value: object, shown: Iterable[RenderableType]) -> None:
        """``value`` as JSON where that was asked for; ``shown`` for people. Printed by ``flush``, once no progress is shown any more."""
        self._value, self._shown = value, list(shown)

    def note(self, text: str) -> None:
        """Something to know, on stderr."""
        stderr(self._color).print(Text(text, style="dim"))

    def flush(self) -> None:
        """Print; a stdout that is the JSON's gets nothing else."""
        if self._json == "-":
            sys.stdout.write(dumps(self._value))
            return
        if self._json is not None:
            write_file(Path(self._json), dumps(self._value).encode())
        console = stdout(self._color)
        with console.capture() as captured:
            for item in self._shown:
                console.print(Text(item) if isinstance(item, str) else item)
        # rich pads every cell of a table; a file or a pipe has no use for that.
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


@contextmanager
def session(json: str | None) -> Iterator[tuple[Output, Progress]]:
    """One verb's output and its listener for progress."""
    color = config().color
    output = Output(json, color)
    with progress(color) as listener:
        yield output, listener
    output.flush()
