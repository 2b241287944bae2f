"""Attention as one kernel on ``cuda``: what is recognised, how operands are read where they lie, when it is chosen, what it computes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graphs import Array, graph

import gatewright as gw
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.runtime.views import opened_tables
from gatewright.targets.base import Artifact
from gatewright.targets.tvm.cuda import attention_kernel
from gatewright.targets.tvm.cuda.attention import Attention, attentions, fused
from gatewright.targets.tvm.cuda.codegen import GpuGraph
from gatewright.targets.tvm.cuda.machine import Gpu
from gatewright.targets.tvm.cuda.products import Products
from gatewright.targets.tvm.cuda.strided import Strided
from gatewright.targets.tvm.cuda.toolkit import Toolkit
from gatewright.targets.tvm.steps import Value, program

needs_compiler = pytest.mark.skipif(Toolkit.installed() is None, reason="NVIDIA's compiler is not installed (the extra cuda)")
H100 = Gpu(32, 255, 132, memory_bytes_per_cycle=15.0, isa=frozenset({"fma", "cuda"}), capability=90)
ROWS = 40


def _causal(rows: int, hidden: float = -np.inf) -> Array:
    return np.triu(np.full((rows, rows), hidden, np.float32), 1)


def network() -> Model:
    """Three attentions. y: heads split and joined by moves, a mask of keys as an input. z: causal, one head of keys for all, keys and
    values wider than a row is long. w: rows and keys that fill no tile, no mask, the result as the product leaves it."""
    text = """(float[1,40,60] x, float[1,1,1,40] m, float[2,4,37,24] a, float[2,1,24,37] b, float[2,1,37,72] c, float[3,5,8] d,
               float[3,70,8] e) => (float[1,40,20] y, float[2,4,37,72] z, float[3,5,8] w) {
        xq, xk, xv = Split<axis=2, num_outputs=3>(x)
        qr = Reshape(xq, heads)
        q = Transpose<perm=[0,2,1,3]>(qr)
        kr = Reshape(xk, heads)
        k = Transpose<perm=[0,2,3,1]>(kr)
        vr = Reshape(xv, heads)
        v = Transpose<perm=[0,2,1,3]>(vr)
        s = MatMul(q, k)
        f = Div(s, c4)
        g = Add(m, f)
        p = Softmax<axis=-1>(g)
        o = MatMul(p, v)
        t = Transpose<perm=[0,2,1,3]>(o)
        y = Reshape(t, flat)
        s2 = MatMul(a, b)
        g2 = Add(s2, causal)
        p2 = Softmax<axis=-1>(g2)
        z = MatMul(p2, c)
        et = Transpose<perm=[0,2,1]>(e)
        s3 = MatMul(d, et)
        p3 = Softmax<axis=-1>(s3)
        w = MatMul(p3, e)
    }"""
    return graph(text, heads=np.asarray([1, 40, 4, 5]), flat=np.asarray([1, 40, 20]), c4=np.float32(4), causal=_causal(37))


def feeds_of(model: Model) -> dict[str, Array]:
    random = np.random.default_rng(0)
    feeds = {one.name: random.normal(0, 1.5, one.shape).astype(np.float32) for one in model.inputs}
    feeds["m"][..., 5:9] = -np.inf
    return feeds


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return gw.compile(network(), "cuda:sm_90", out=tmp_path_factory.mktemp("attention") / "a")


def _error(artifact: Artifact, feeds: dict[str, Array], wanted: dict[str, Array]) -> float:
    with artifact.load("emulate") as executor:
        got = executor.run(feeds)
    return max(float(np.max(np.abs(got[name] - array)) / np.max(np.abs(array))) for name, array in wanted.items())


@needs_compiler
def test_it_is_one_kernel_that_stores_no_scores_and_computes_what_ref_does(artifact: Artifact) -> None:
    """40 terms and a few more roundings, each of 2⁻²⁴, on numbers of about the result's size."""
    model = network()
    described = artifact.manifest["target"]
    assert len(described["attention"]) == 3
    assert all("one kernel" in told and "separate kernels" in told for told in described["attention"])
    assert described["figures"]["attentions in one kernel"]["value"] == 3
    assert [line for line in opened_tables(artifact) if str(line).startswith("attention at")] == described["attention"]
    kernels = [name for name in described["resources"] if "attention" in name]
    assert len(kernels) == described["kernels_run"] == 3, "what only moves is part of the kernel"
    assert all(described["resources"][name]["spilled_bytes"] == 0 for name in kernels)
    assert not any(tuple(call["shape"][-2:]) in {(40, 40), (37, 37), (5, 70)} for call in described["calls"])
    assert json.loads((artifact.path / "plan.json").read_text(encoding="utf-8"))["arena_bytes"] == 0
    feeds = feeds_of(model)
    assert _error(artifact, feeds, Reference(model).run(feeds)) <= 2e-6


@needs_compiler
@pytest.mark.parametrize(
    ("planted", "instead"),
    [
        ("sums[i][c] *= change;", ""),
        ("total[i] *= change;", ""),
        ("__syncthreads();", "__syncwarp();"),
        ("max(0, first - ", "16 + max(0, first - "),
    ],
)
def test_a_planted_bug_shows(artifact: Artifact, tmp_path: Path, planted: str, instead: str) -> None:
    """Sums that are not scaled anew, a missing barrier, keys left out."""
    model, folder = network(), tmp_path / "planted"
    shutil.copytree(artifact.path, folder)
    source = (folder / "kernels.cu").read_text(encoding="utf-8")
    assert planted in source
    (folder / "kernels.cu").write_text(source.replace(planted, instead), encoding="utf-8")
    feeds = feeds_of(model)
    error = _error(Artifact(folder, artifact.manifest, artifact.context), feeds, Reference(model).run(feeds))
    assert not error <= 1e-3


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("tf32", 4e-3), ("float16", 4e-3), ("bfloat16", 3e-2)])
def test_on_tensor_cores_operands_are_rounded_and_no_more(tmp_path: Path, precision: str, bound: float) -> None:
    """As in other products: 11 or 8 bits of Q, K, the shares and V are kept."""
    model = network()
    artifact = gw.compile(model, f"cuda:sm_80{{precision={precision}}}", out=tmp_path / "a")
    assert not artifact.manifest["target"]["notes"]
    described = artifact.manifest["target"]["resources"]
    assert sum("attention" in name for name in described) == 3
    assert all(own["spilled_bytes"] == 0 for own in described.values())
    assert (artifact.path / "kernels.cu").read_text(encoding="utf-8").count("wmma::mma_sync") == 6
    feeds = feeds_of(model)
    assert 1e-5 < _error(artifact, feeds, Reference(model).run(feeds)) <= bound


@needs_compiler
def test_a_row_that_sees_nothing_is_no_number_and_spoils_no_other(tmp_path: Path) -> None:
    model = graph(
        """(float[1,20,8] q, float[1,8,20] k, float[1,20,8] v, float[1,20,20] m) => (float[1,20,8] y) {
            s = MatMul(q, k)
            a = Add(s, m)
            p = Softmax(a)
            y = MatMul(p, v)
        }"""
    )
    random = np.random.default_rng(3)
    feeds = {one.name: random.normal(0, 1, one.shape).astype(np.float32) for one in model.inputs}
    feeds["m"][0, :, :16] = -np.inf
    feeds["m"][0, 7] = -np.inf
    with np.errstate(invalid="ignore"):
        wanted = Reference(model).run(feeds)["y"]
    with gw.compile(model, "cuda:sm_80{attention=fused}", out=tmp_path / "a").load("emulate") as executor:
        got = executor.run(feeds)["y"]
    assert np.isnan(wanted[0, 7]).all()
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6)


def test_the_option_decides_and_else_the_estimate() -> None:
    """One query and thousands of keys: split products keep the GPU busier than one block for each head."""
    many = graph(
        """(float[1,2,1,64] q, float[1,2,64,16384] k, float[1,2,16384,64] v) => (float[1,2,1,64] y) {
            s = MatMul(q, k)
            p = Softmax(s)
            y = MatMul(p, v)
        }"""
    )
    for wish, count in (("auto", 0), ("fused", 1), ("separate", 0)):
        made = GpuGraph.on(program(many), H100, Products(), wish)  # type: ignore[arg-type]
        assert len(made.attentions) == count
        assert bool(made.notes) == (wish != "separate")
    three = GpuGraph.on(program(network()), H100, Products(), "auto")
    assert len(three.attentions) == len(three.groups) == 3


def test_more_heads_than_a_grid_s_second_axis_counts() -> None:
    text = "(float[N,3,4] q, float[N,4,3] k, float[N,3,4] v) => (float[N,3,4] y) { s = MatMul(q, k) p = Softmax(s) y = MatMul(p, v) }"
    many = graph(text.replace("N", "70000"))
    made = GpuGraph.on(program(many), H100, Products(), "fused")
    (found,) = made.attentions.values()
    tile = attention_kernel.tile(found, H100, "float32")
    assert tile is not None
    x, *others = attention_kernel.schedule(tile, found, ["x0", "x1", "x2", "out"]).grid
    assert x >= 70000
    assert others == [1, 1]


def test_heads_that_no_tile_holds_stay_separate_kernels_and_that_is_told() -> None:
    wide = graph(
        "(float[64,2048] q, float[2048,64] k, float[64,64] v) => (float[64,64] y) { s = MatMul(q, k) p = Softmax(s) y = MatMul(p, v) }"
    )
    made = GpuGraph.on(program(wide), H100, Products(), "fused")
    assert not made.attentions
    assert "2048" in made.notes[0]


_PATTERN = """(float[2,6,8] q, float[2,8,6] k, float[2,6,8] v{inputs}) => (float[2,6,8] y{outputs}) {{
    s = MatMul(q, k)
    {between}
    y = MatMul({last})
}}"""


@pytest.mark.parametrize(
    ("between", "extra"),
    [
        ("p = Softmax<axis=-1>(s)", {"outputs": ", float[2,6,6] p"}),
        ("p = Softmax<axis=1>(s)", {}),
        ("a = Mul(s, f) p = Softmax<axis=-1>(a)", {"inputs": ", float[1] f"}),
        ("a = Add(s, c) b = Mul(a, c) p = Softmax<axis=-1>(b)", {}),
        ("a = Add(s, s) p = Softmax<axis=-1>(a)", {}),
        ("a = Mul(s, endless) p = Softmax<axis=-1>(a)", {}),
        ("a = Div(s, none) p = Softmax<axis=-1>(a)", {}),
        ("r = Softmax<axis=-1>(s) p = Relu(r)", {}),
        ("a = Where(seen, s, c) p = Softmax<axis=-1>(a)", {}),
        ("a = Where(seen, least, s) p = Softmax<axis=-1>(a)", {}),
        ("b = Add(s, c) a = Where(seen, b, least) p = Softmax<axis=-1>(a)", {}),
        ("p = Softmax<axis=-1>(s)", {"outputs": ", float[2,6,6] s"}),
    ],
)
def test_what_is_not_quite_an_attention_is_left_alone(between: str, extra: dict[str, str]) -> None:
    words = {"inputs": "", "outputs": "", "last": "p, v", **extra}
    constants = {"seen": np.tri(6, dtype=bool), "least": np.finfo(np.float32).min, "endless": np.float32(np.inf), "c": np.float32(0.5)}
    constants["none"] = np.float32(0)
    model = graph(_PATTERN.format(between=between, **words), **{name: np.asarray(array) for name, array in constants.items()})
    assert attentions(program(model)) == []


@pytest.mark.parametrize(
    ("between", "scale"),
    [("p = Softmax<axis=-1>(s)", 1.0), ("a = Mul(c, s) b = Div(a, c) d = Mul(b, c) p = Softmax<axis=2>(d)", 0.5),
     ("a = Mul(s, c) b = Add(w, a) p = Softmax<axis=-1>(b)", 0.5)],
)  # fmt: skip
def test_what_is_one_is_seen(between: str, scale: float) -> None:
    text = _PATTERN.format(between=between, inputs=", float[6,6] w", outputs="", last="p, v")
    steps = program(graph(text, c=np.float32(0.5)))
    (found,) = attentions(steps)
    assert found.attention.scale == scale
    assert (found.attention.mask is not None) == ("w" in between)
    assert [step.node.op_type for step in fused(steps, [found]).steps] == ["Attention"]


@needs_compiler
@pytest.mark.parametrize("hidden", [np.finfo(np.float32).min, -np.inf])
def test_a_mask_that_chooses_is_one_that_is_added(tmp_path: Path, hidden: float) -> None:
    """As GPT-2 has it. A row that sees nothing is the mean of all, or no number, as in ref."""
    text = _PATTERN.format(between="f = Mul(s, c) a = Where(seen, f, least) p = Softmax(a)", inputs="", outputs="", last="p, v")
    visible = np.tri(6, dtype=bool)
    visible[3] = False
    model = graph(text, seen=visible, least=np.float32(hidden), c=np.float32(0.5))
    feeds = {one.name: np.random.default_rng(2).normal(0, 2, one.shape).astype(np.float32) for one in model.inputs}
    artifact = gw.compile(model, "cuda:sm_80{attention=fused}", out=tmp_path / "a")
    assert [call["function"] for call in artifact.manifest["target"]["calls"]] == ["k0_attention"]
    with np.errstate(invalid="ignore"):
        wanted = Reference(model).run(feeds)["y"]
    with artifact.load("emulate") as executor:
        np.testing.assert_allclose(executor.run(feeds)["y"], wanted, rtol=2e-6, atol=2e-6)


def test_strides_say_what_moves_mean() -> None:
    """Against numpy, on the numbers of the elements."""
    value = Value("x", (2, 6, 20), "float32")
    x, own = np.arange(240).reshape(2, 6, 20), Strided.of(value)

    def elements(one: Strided) -> Array:
        return np.asarray(one.offset + sum(i * s for i, s in zip(np.indices(one.shape), one.strides, strict=True)))

    chain: list[tuple[Callable[[Array], Array], Callable[[Strided], Strided | None]]] = [
        (lambda a: a[:, :, 5:15], lambda s: s.cut(2, 5, 10)),
        (lambda a: a.reshape(2, 6, 2, 5), lambda s: s.reshaped((2, 6, 2, 5))),
        (lambda a: a.transpose(0, 2, 1, 3), lambda s: s.transposed((0, 2, 1, 3))),
        (lambda a: a[:, :, 1::2], lambda s: s.cut(2, 1, 3, 2)),
        (lambda a: a.reshape(2, 1, 2, 3, 5, 1), lambda s: s.reshaped((2, 1, 2, 3, 5, 1))),
        (lambda a: np.broadcast_to(a, (2, 4, 2, 3, 5, 7)), lambda s: s.repeated((2, 4, 2, 3, 5, 7))),
    ]
    for with_numpy, with_strides in chain:
        moved = with_strides(own)
        assert moved is not None
        x, own = with_numpy(x), moved
        np.testing.assert_array_equal(elements(own), x)
    assert Strided.of(value).transposed((0, 2, 1)).reshaped((2, 120)) is None, "that is a copy"
    assert Strided.of(value).repeated((2, 6, 21)) is None


def _attention(mask: Array | None = None) -> Attention:
    def seen(name: str, *shape: int) -> Strided:
        return Strided.of(Value(name, shape, "float32"))

    rows = 128 if mask is None else mask.shape[0]
    q, k, v = seen("q", 12, rows, 64), seen("k", 12, rows, 64).transposed((0, 2, 1)), seen("v", 12, rows, 64)
    added = None if mask is None else seen("m", *mask.shape).repeated((12, *mask.shape))
    return Attention("n", q, k, v, added, mask, 0.125, seen("out", 12, rows, 64))


def test_keys_that_a_constant_mask_hides_are_passed_over() -> None:
    whole, causal = _attention(), _attention(_causal(128))
    assert whole.band is None
    assert causal.band == (127, 0)
    assert _attention(_causal(128, -1e4)).band == (127, 127), "a large score could still be seen"
    window = _causal(128) + _causal(128).T
    assert _attention(np.where(window == 0, 0, -np.inf).astype(np.float32)).band == (0, 0)
    blind = _causal(128)
    blind[5] = -np.inf
    assert _attention(blind).band is None
    tile = attention_kernel.Tile(32, 16, "float32")
    assert attention_kernel.cycles(tile, causal, H100) < attention_kernel.cycles(tile, whole, H100)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "tf32"])
def test_no_tile_of_heads_of_64_spills(kind: str) -> None:
    attention, toolkit = _attention(_causal(128)), Toolkit.installed()
    assert toolkit is not None
    names = {"q": "x0", "k": "x1", "v": "x2", "m": "p0", "out": "out"}
    tiles = [tile for rows in (64, 32, 16) for keys in (64, 32, 16) if (tile := attention_kernel.Tile(rows, keys, kind)).fits(attention)]
    made = [
        attention_kernel.schedule(tile, attention, list(names.values())).lowered(attention_kernel.text(tile, attention, names), f"k{i}")
        for i, tile in enumerate(tiles)
    ]  # fmt: skip
    for arch in ("sm_80", "sm_90", "sm_100"):
        with tempfile.TemporaryDirectory() as folder:
            text = "\n".join(one.text for one in made)
            Path(folder, "kernels.cu").write_text(f'#include "gatewright_gpu.h"\n{text}', encoding="utf-8")
            found = toolkit.assemble(Path(folder), arch, sorted(made[0].features))
        for i, tile in enumerate(tiles):
            assert found[f"k{i}_kernel"]["spilled_bytes"] == 0, (arch, tile)
            assert found[f"k{i}_kernel"]["shared_bytes"] == tile.shared_bytes(attention), (arch, tile)
