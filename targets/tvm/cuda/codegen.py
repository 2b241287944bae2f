"""Kernels for a GPU from the steps of a program: the same groups and the same operators as on a CPU, other products and other schedules.

Values lie row-major: neighbouring threads take neighbouring positions of the last axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tvm import s_tir

from gatewright.errors import GatewrightError

from .. import views
from ..channels import ordered
from ..codegen import Graph
from ..fusion import Group, group
from ..kernel import Kernel
from ..layout import ROW_MAJOR
from ..lazy import compute
from ..placement import copies_input
from ..reshapes import is_float, looked_up, settled
from ..schedules.common import extent
from ..schedules.reduction import Reduction
from ..schedules.rows import Rows
from ..steps import Program, Step
from . import attention_kernel
from .attention import Attention, Found, attentions, fused
from .attention_kernel import FusedAttention
from .lowering import Lowered, lowered
from .machine import Gpu
from .products import Product, Products
from .schedules import LONG, MANY, Direct, RowPasses, Shared, Tiled, apart, inside, loops_of, terms_of

FuseAttention = Literal["auto", "fused", "separate"]
"""auto: one kernel where that is estimated to be quicker. fused: wherever it can be."""


@dataclass(frozen=True)
class GpuGraph(Graph):
    """A program's kernels before they are made."""

    products: Products = field(default_factory=Products)
    attentions: dict[str, Attention] = field(default_factory=dict)
    """Those that are one kernel, by the name of what they make."""
    notes: tuple[str, ...] = ()
    """Which attentions are one kernel and which are not, and why."""

    @classmethod
    def on(cls, program: Program, machine: Gpu, products: Products, attention: FuseAttention = "auto") -> GpuGraph:
        program = ordered(settled(looked_up(program)))
        chosen, notes = _chosen(program, machine, products, attention)
        program = fused(program, chosen)
        values = {v.name: v for v in (*program.inputs, *(s.output for s in program.steps))}
        groups = group(program.steps, [v.name for v in program.outputs], copies_input, _alone)
        found, idle = views.find(groups, {}, program)
        inner = {g.output.output.name: (g.output.output, ROW_MAJOR) for g in groups if g.output.output not in program.outputs}
        own = {one.output.name: one.attention for one in chosen}
        return cls(program, machine, tuple(g for g in groups if g not in idle), {}, found, inner, values, products, own, notes)

    def kernel(self, one: Group, policy: Any) -> Kernel:
        return replace(super().kernel(one, policy), products=self.products)

    def lowered(self, one: Group, policy: Any) -> tuple[Kernel, Any]:
        attention = self.attentions.get(one.output.output.name)
        return super().lowered(one, policy) if attention is None else self._attention(one, attention, policy)

    def _attention(self, one: Group, attention: Attention, policy: Any) -> tuple[Kernel, str]:
        """The kernel, and its text in place of a function of TVM's."""
        kernel = self.kernel(one, policy)
        names = {one.output.output.name: "out"}
        for name in one.output.inputs:
            kernel.read(self.values[str(name)], ROW_MAJOR)
            names[str(name)] = f"x{len(names) - 1}"
        if attention.constant is not None and attention.mask is not None:
            kernel.buffer(attention.constant).at(*(0 for _ in attention.constant.shape))
            names[attention.mask.name] = "p0"
        assert isinstance(self.machine, Gpu)
        tile = attention_kernel.tile(attention, self.machine, self.products.precision)
        assert tile is not None
        given = [name for name in names.values() if name != "out"]
        kernel.schedule = attention_kernel.schedule(tile, attention, [*given, "out"])
        kernel.work = attention.entries * attention.rows * attention.keys * (attention.depth + attention.width)
        return kernel, attention_kernel.text(tile, attention, names)

    def closed(self, kernel: Kernel, result: Any) -> Any:
        """The store of the result; behind a product in the product's own axes, so that a tile of it is a tile of the result."""
        product = kernel.product
        if not isinstance(product, Product):
            return super().closed(kernel, result)
        schedule = kernel.schedule
        assert isinstance(schedule, Tiled | Shared)
        if product.stored is None and result.shape != product.logical:
            product.store()
        if product.stored is not None:
            kernel.schedule = replace(schedule, stores="tile")
            return super().closed(kernel, result)
        own = product.shape
        return compute((own.batch, own.rows, own.columns), lambda *i: result.at(*product.unfold(*i)), "out")

    def plain(self) -> Any:
        return None

    def scheduled(self, kernel: Kernel, function: Any, dtype: str, name: str) -> Lowered:
        """CUDA C++ of the kernel: by its own schedule where there is one for GPUs, then in ever plainer ways."""
        if isinstance(kernel.schedule, FusedAttention):
            return kernel.schedule.lowered(function, name)
        refusal: Exception | None = None
        for way in _ways(kernel):
            try:
                schedule = s_tir.Schedule(function)
                way(schedule)
                assert isinstance(self.machine, Gpu)
                own = kernel.schedule
                # A fragment of floats can't be stored where its halves lay: TVM takes the address by the first owner's type.
                shares = not (isinstance(own, Tiled) and own.dtype in ("float16", "bfloat16", "tf32"))
                return lowered(schedule.mod["main"], self.machine, name, shares=shares)
            except GatewrightError as error:
                refusal = error
            except Exception as error:  # TVM raises many types where a schedule does not fit a kernel
                refusal = error
        assert refusal is not None
        raise refusal


def _alone(step: Step) -> bool:
    """Whether a step shares no kernel: what joins in place is none, and an attention's text is its own."""
    return views.may_join_in_place(step) or is_float(step, "Attention")


def _chosen(program: Program, machine: Gpu, products: Products, wish: FuseAttention) -> tuple[list[Found], tuple[str, ...]]:
    """The attentions that become one kernel each, and what to tell of all of them."""
    chosen, told = [], []
    core = None if products.precision == "float32" else products.precision
    for found in attentions(program) if wish != "separate" else ():
        one, label = found.attention, f"attention at {found.attention.node}"
        tile = attention_kernel.tile(one, machine, products.precision)
        if tile is None:
            told.append(f"{label}: separate kernels, since no tile of heads of {one.depth} and {one.width} elements fits a block")
            continue
        own, others = attention_kernel.cycles(tile, one, machine), attention_kernel.separate_cycles(one, machine, core)
        if wish == "fused" or own < others:
            chosen.append(found)
            told.append(f"{label}: one kernel, {own:,.0f} cycles estimated; separate kernels {others:,.0f}")
        else:
            told.append(f"{label}: separate kernels, {others:,.0f} cycles estimated; one kernel {own:,.0f}")
    return chosen, tuple(told)


def _ways(kernel: Kernel) -> list[Callable[[Any], None]]:
    """Schedules for the kernel, the best first."""
    found, own = [], kernel.schedule
    if isinstance(own, Tiled | Shared | Direct):
        found.append(lambda schedule: own(schedule, kernel.machine))
        return [*found] if isinstance(own, Tiled | Shared) else [*found, apart]
    if isinstance(own, Rows):
        found.append(lambda schedule: RowPasses(own.axes)(schedule, kernel.machine))
    elif isinstance(own, Reduction) and kernel.work:
        found.append(lambda schedule: reduced(schedule, own))
    return [*found, apart]


def reduced(schedule: Any, own: Reduction) -> None:
    """One sum a thread where there are many or they are short; else the threads of a block share a sum."""
    acc, out = schedule.get_sblock("acc"), schedule.get_sblock("out")
    count = 1
    for loop in loops_of(schedule, out):
        count *= extent(schedule, loop)
    if own.axes and own.decomposed and not own.before and count < MANY and terms_of(schedule, acc) >= LONG:
        Shared().share(schedule)
    else:
        inside(schedule, [*own.before, "acc"])
