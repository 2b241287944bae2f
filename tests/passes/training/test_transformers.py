"""A transformer in ONNX learns: embeddings, attention under a causal mask, LayerNormalization, GELU; a label for every position."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from graphs import Array, graph  # noqa: E402

from gatewright.frontend.data import Dataset  # noqa: E402
from gatewright.frontend.model import Model  # noqa: E402
from gatewright.frontend.reference import Reference  # noqa: E402
from gatewright.passes.base import PassContext  # noqa: E402
from gatewright.passes.pipeline import Pipeline  # noqa: E402
from gatewright.passes.rewrite import real_constant  # noqa: E402
from gatewright.passes.training.executor import Executor  # noqa: E402

TOKENS, LENGTH, WIDTH, HEADS = 11, 12, 16, 2


def transformer() -> Model:
    """int64[N,12] tokens to logits of the next token at every position."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Array:
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    def projected(name: str, perm: str) -> str:
        return f"{name} = MatMul(n, w{name}) {name}r = Reshape({name}, heads) {name}t = Transpose<perm = [{perm}]>({name}r) "

    body = (
        "e = Gather(tokens_w, x) h = Add(e, places) n = LayerNormalization(h, g1, b1) heads = Constant<value = int64[4] {0, 12, 2, 8}>() "
        + projected("q", "0, 2, 1, 3") + projected("k", "0, 2, 3, 1") + projected("v", "0, 2, 1, 3")
        + "s = MatMul(qt, kt) root = Constant<value = float {2.8284271}>() t = Div(s, root) m = Add(t, mask) a = Softmax(m) "
        "c = MatMul(a, vt) ct = Transpose<perm = [0, 2, 1, 3]>(c) shape = Constant<value = int64[3] {0, 12, 16}>() "
        "cr = Reshape(ct, shape) o = MatMul(cr, wo) r = Add(h, o) "
        "n2 = LayerNormalization(r, g2, b2) u = MatMul(n2, w1) ub = Add(u, c1) f = Gelu(ub) d = MatMul(f, w2) z = Add(r, d) "
        "y = MatMul(z, head)"
    )  # fmt: skip
    return graph(
        f"(int64[1,12] x) => (float[1,12,11] y) {{ {body} }}",
        tokens_w=drawn(TOKENS, WIDTH), places=drawn(LENGTH, WIDTH), g1=np.ones(WIDTH, np.float32), b1=np.zeros(WIDTH, np.float32),
        wq=drawn(WIDTH, WIDTH), wk=drawn(WIDTH, WIDTH), wv=drawn(WIDTH, WIDTH), wo=drawn(WIDTH, WIDTH),
        mask=np.triu(np.full((LENGTH, LENGTH), -1e9), 1).astype(np.float32), g2=np.ones(WIDTH, np.float32), b2=np.zeros(WIDTH, np.float32),
        w1=drawn(WIDTH, 32), c1=np.zeros(32, np.float32), w2=drawn(32, WIDTH), head=drawn(WIDTH, TOKENS),
    )  # fmt: skip


def sequences(samples: int, seed: int = 0) -> Dataset:
    """Arithmetic progressions modulo 11: after two tokens the next one is known."""
    rng = np.random.default_rng(seed)
    start, step = rng.integers(0, TOKENS, (2, samples, 1))
    whole = (start + step * np.arange(LENGTH + 1)) % TOKENS
    return Dataset({"x": whole[:, :-1]}, whole[:, 1:])


def test_it_computes_what_the_reference_does() -> None:
    model, data = transformer(), sequences(5)
    net = Executor(model)
    assert "mask" not in net.parameters
    assert len(net.parameters) == 14
    with torch.no_grad():
        got = net.run(net.feeds(data.feeds(model.inputs)))["y"].numpy()
    np.testing.assert_allclose(got, Reference(model).run(data.feeds(model.inputs))["y"], rtol=1e-4, atol=1e-5)


def test_it_learns_the_next_token() -> None:
    text = "finetune{epochs=25,lr=0.01,batch=32,clip=1,warmup=0.1}"
    trained = Pipeline.parse(text).run(transformer(), PassContext(data=sequences(600)))
    fresh = sequences(100, seed=1)
    found = Reference(trained).run(fresh.feeds(trained.inputs))["y"].argmax(-1)
    assert fresh.labels is not None
    assert (found == fresh.labels)[:, 2:].mean() > 0.95
    assert (found == fresh.labels)[:, 0].mean() < 0.5, "nobody can know the second token from the first: the mask holds"


@pytest.mark.parametrize("store", ["rows", "blocks"])
def test_weights_of_4_bits_are_unpacked_and_trained(store: str) -> None:
    """Groups of inputs share a scale, in either form that ``nearest`` and ``gptq`` store: the weights are matrices again."""
    small = Pipeline.parse(f"nearest{{group=16,store={store}}}").run(transformer(), PassContext(data=sequences(10)))
    assert any(node.op_type == "DequantizeLinear" for node in small.graph)
    data = sequences(200)
    x = data.feeds(small.inputs)
    trained = Pipeline.parse("finetune{epochs=5,lr=0.01,batch=32,clip=1,validation=0}").run(small, PassContext(data=data))
    assert any("stored as integers are float" in note for note in trained.history[-1].notes)
    assert {node.op_type for node in trained.graph}.isdisjoint({"DequantizeLinear"})
    assert sum(node.op_type == "MatMul" and real_constant(node.inputs[1]) is not None for node in trained.graph) == 7
    assert data.labels is not None
    before, after = ((Reference(m).run(x)["y"].argmax(-1) == data.labels).mean() for m in (small, trained))
    assert after > before + 0.05
