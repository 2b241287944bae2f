"""Rules of importance and kinds of pruning: each against its definition, structured ones against the masked model."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import build, dataset, float_models
from transformer import transformer

from gatewright.errors import DataError, GatewrightError, PassError, ToolMissing, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.frontend.work import macs
from gatewright.passes import importance as rules
from gatewright.passes.base import PassContext
from gatewright.passes.importance_information import entropy, mutual_information
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.prune import Prune, masked
from gatewright.passes.prune_weights import has_pattern
from gatewright.passes.verify import relative_error, tolerance

UNITS = ("channel", "head", "neuron", "layer")


def weights(model: Model) -> list[np.ndarray]:
    return [np.asarray(n.inputs[1].const_value.numpy()) for n in rules.layers(model.graph)]  # type: ignore[union-attr]


def labelled(model: Model, samples: int = 40, seed: int = 1) -> PassContext:
    data = dataset(model, samples, seed)
    labels = np.random.default_rng(seed).integers(0, 3, samples)
    return PassContext(data=Dataset(data.arrays, labels), seed=3)


def perceptron(seed: int = 0) -> Model:
    random = np.random.default_rng(seed)
    return graph(
        "(float[1,6] x) => (float[1,3] y) { a = Gemm(x, w1, b1) b = Relu(a) c = Gemm(b, w2, b2) d = Relu(c) y = Gemm(d, w3, b3) }",
        w1=random.normal(size=(6, 16)).astype(np.float32), b1=random.normal(size=16).astype(np.float32),
        w2=random.normal(size=(16, 8)).astype(np.float32), b2=np.zeros(8, np.float32),
        w3=random.normal(size=(8, 3)).astype(np.float32), b3=np.zeros(3, np.float32),
    )  # fmt: skip


def assert_equals_masked(model: Model, pruning: Prune, feeds: dict[str, np.ndarray], context: PassContext | None = None) -> Model:
    smaller = Pipeline((pruning,)).run(model, context)
    silent = masked(model, pruning, context)
    left, right = Reference(smaller).run(feeds), Reference(silent).run(feeds)
    for name in left:
        assert relative_error(right[name], left[name]) <= tolerance(model)
    assert macs(smaller) < macs(model)
    return smaller


# ---- importance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["magnitude", "channel", "neuron", "block", "nm"])
@pytest.mark.parametrize("rule", ["magnitude", "taylor", "gradient", "fisher", "random", "entropy", "mutual"])
def test_every_rule_with_every_kind(kind: str, rule: str) -> None:
    if rule in rules.GRADIENTS:
        pytest.importorskip("torch")
    model = perceptron()
    context = labelled(model)
    options = {"block": ",block=4", "nm": ",exclude=a"}.get(kind, "")
    text = f"prune{{kind={kind},importance={rule}{options}}}"
    first, again = (Pipeline.parse(text).run(model, context) for _ in range(2))
    assert first.digest == again.digest != model.digest
    if kind in UNITS:
        assert_equals_masked(model, Prune(kind=kind, importance=rule), dict(context.data.inputs), context)  # type: ignore[arg-type, union-attr]


def test_gradient_rules_take_the_smallest_of_the_models_own_gradients() -> None:
    pytest.importorskip("torch")
    from gatewright.passes.training.gradients import importance

    model = perceptron()
    context = labelled(model)
    assert context.data is not None
    small = Pipeline.parse("prune{importance=taylor,amount=0.25,scope=global}").run(model, context)
    score = np.concatenate([importance(model, context.data, "taylor")[name].ravel() for name in ("w1", "w2", "w3")])
    gone = np.concatenate([w.ravel() == 0 for w in weights(small)])
    assert gone.sum() == gone.size // 4
    assert score[gone].max() <= score[~gone].min()


def test_weights_that_are_zero_go_first_by_any_rule() -> None:
    """Otherwise a second step of a gradual schedule would count others."""
    model = perceptron()
    half = Pipeline.parse("prune{amount=0.5}").run(model)
    more = Pipeline.parse("prune{amount=0.5,importance=random}").run(half, PassContext(seed=9))
    for before, after in zip(weights(half), weights(more), strict=True):
        assert np.array_equal(before, after)


def test_entropy_and_mutual_information_of_known_distributions() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 20_000)
    uniform, constant, told = random.random(20_000), np.full(20_000, 3.0), labels.astype(np.float64)
    values = np.stack([uniform, constant, told], axis=1)
    found = entropy(values, 16)
    assert found == pytest.approx([np.log(16), 0, np.log(4)], abs=2e-3)
    assert mutual_information(values, labels, 16) == pytest.approx([0, 0, np.log(4)], abs=2e-3)
    # Without the correction, samples of independent variables seem to tell each other (8 − 1)(4 − 1)/2N = 0.026 nats.
    few = [mutual_information(random.random((400, 1)), random.integers(0, 4, 400), 8)[0] for _ in range(300)]
    assert abs(np.mean(few)) < 0.005


def test_information_keeps_the_unit_that_tells_the_label() -> None:
    """Unit 0 copies the label, unit 1 is noise of larger weight, unit 2 is constant."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    x = np.stack([labels, random.random(400)], axis=1).astype(np.float32)
    model = graph(
        "(float[1,2] x) => (float[1,2] y) { h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, v) }",
        w=np.asarray([[0.1, 0, 0], [0, 5, 0.0]], np.float32), b=np.asarray([0, 0, 9], np.float32), v=np.ones((3, 2), np.float32),
    )  # fmt: skip
    context = PassContext(data=Dataset({"x": x}, labels))
    kept = {rule: weights(Pipeline.parse(f"prune{{kind=neuron,amount=0.7,importance={rule}}}").run(model, context))[0].max()
            for rule in ("mutual", "entropy", "magnitude")}  # fmt: skip
    assert kept["mutual"] == np.float32(0.1)
    assert kept["entropy"] == kept["magnitude"] == 5


def test_rules_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    model = perceptron()
    unlabelled = PassContext(data=dataset(model))
    with pytest.raises(DataError, match="importance=entropy needs data"):
        Pipeline.parse("prune{importance=entropy}").run(model)
    with pytest.raises(DataError, match=r"class labels.*has none"):
        Pipeline.parse("prune{importance=mutual}").run(model, unlabelled)
    with pytest.raises(DataError, match="importance=taylor is about the loss against labels"):
        Pipeline.parse("prune{importance=taylor}").run(model, unlabelled)
    monkeypatch.setattr("gatewright.passes.training.require.find_spec", lambda name: None)
    with pytest.raises(ToolMissing, match="gradient importance"):
        Pipeline.parse("prune{importance=taylor}").run(model, labelled(model))


# ---- zeros ---------------------------------------------------------------------------------------------------------


def test_two_of_four_keeps_the_largest_along_the_inputs() -> None:
    model = build(3, ["conv_1x1"], image=True)
    gemm = graph("(float[1,8] x) => (float[1,3] y) { y = MatMul(x, w) }", w=np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))
    (w,), (kept,) = weights(gemm), weights(Pipeline.parse("prune{kind=nm}").run(gemm))
    for column in range(3):
        for start in (0, 4):
            part, left = w[start : start + 4, column], kept[start : start + 4, column]
            assert np.count_nonzero(left) == 2
            assert set(np.abs(left[left != 0])) == set(np.sort(np.abs(part))[2:])
    node = next(iter(gemm.graph))
    assert has_pattern(kept, node, 2, 4)
    assert not has_pattern(w, node, 2, 4)
    with pytest.raises(PassError, match=r"no layer can keep 2 of 4; .*no multiple of 4"):
        Pipeline.parse("prune{kind=nm,exclude=gemm*|y}").run(model)


def test_layers_that_cannot_hold_the_pattern_are_named() -> None:
    step = Pipeline.parse("prune{kind=nm}").run(perceptron()).history[-1]
    assert any("its 6 inputs are no multiple of 4" in note for note in step.notes)
    assert set(step.details["sparsity"].values()) == {0.5}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_blocks_lie_along_the_outputs(scope: str) -> None:
    model = perceptron()
    small = Pipeline.parse(f"prune{{kind=block,block=8,scope={scope}}}").run(model)
    before, after = weights(model), weights(small)
    gone = 0
    for w, v in zip(before, after, strict=True):
        for row, left in zip(w, v, strict=True):
            for start in range(0, len(row), 8):
                part = left[start : start + 8]
                assert not part.any() or np.array_equal(part, row[start : start + 8])
                gone += not part.any()
    assert gone == (6 * 2 + 16 + 8) // 2
    if scope == "layer":
        means = np.abs(before[0]).reshape(6, 2, 8).mean(axis=2)
        assert small.history[-1].details["blocks"] == [36, 18]
        dead = ~after[0].reshape(6, 2, 8).any(axis=2)
        assert means[dead].max() <= means[~dead].min()


def test_a_blocks_length_comes_from_the_device() -> None:
    model = perceptron()
    step = Pipeline.parse("prune{kind=block,device=raspberry-pi-5}").run(model).history[-1]
    wanted = Pipeline.parse("prune{kind=block,block=4}").run(model)
    assert weights(Pipeline.parse("prune{kind=block,device=raspberry-pi-5}").run(model))[0].tolist() == weights(wanted)[0].tolist()
    assert "latency_s" in step.details["predicted"]


def test_an_fpga_loses_the_weights_with_most_signed_digits_for_their_importance() -> None:
    """127 = 128 − 1 has two digits, 85 = 1010101b four: of two weights that are nearly alike, the expensive one goes."""
    w = np.asarray([[127, 85, 84, 64, 128 - 2, 96]], np.float32).T / 127
    model = graph("(float[1,6] x) => (float[1,1] y) { y = MatMul(x, w) }", w=w)
    (kept,) = weights(Pipeline.parse("prune{amount=0.34,pattern=hardware,device=pynq-z2}").run(model))
    assert (kept == 0).ravel().tolist() == [False, True, True, False, False, False]
    step = Pipeline.parse("prune{amount=0.34,pattern=hardware,device=pynq-z2}").run(model).history[-1]
    plain = Pipeline.parse("prune{amount=0.34,device=pynq-z2}").run(model).history[-1]
    assert step.details["predicted"]["LUT"][1] < plain.details["predicted"]["LUT"][1] < plain.details["predicted"]["LUT"][0]


def test_a_share_of_the_luts() -> None:
    model = perceptron()
    text = "prune{amount=0.5,measure=device,pattern=hardware,device=pynq-z2,scope=global}"
    before, after = Pipeline.parse(text).run(model).history[-1].details["predicted"]["LUT"]
    assert 0.45 * before < after < 0.56 * before
    text = "prune{kind=neuron,amount=0.5,measure=device,device=pynq-z2,scope=global}"
    before, after = Pipeline.parse(text).run(model).history[-1].details["predicted"]["LUT"]
    assert after < 0.56 * before


def test_units_fill_whole_vectors() -> None:
    model = perceptron()
    small = Pipeline.parse("prune{kind=neuron,amount=0.3,pattern=hardware,device=raspberry-pi-5}").run(model)
    assert [w.shape for w in weights(small)] == [(6, 12), (12, 8), (8, 3)]
    plain = Pipeline.parse("prune{kind=neuron,amount=0.3}").run(model)
    assert [w.shape for w in weights(plain)] == [(6, 12), (12, 6), (6, 3)]


# ---- smaller tensors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["bert", "gpt", "packed"])
@pytest.mark.parametrize("text", [
    "prune{kind=head}", "prune{kind=neuron}", "prune{kind=layer}", "prune{kind=head,amount=0.2,measure=macs}",
    "prune{kind=neuron,amount=0.2,measure=macs,scope=global}", "prune{kind=layer,amount=0.3,measure=macs}",
    "prune{kind=head,importance=entropy,scope=global,amount=0.3}", "prune{kind=layer,importance=random}",
])  # fmt: skip
def test_transformers(shape: str, text: str) -> None:
    model, feeds = transformer(shape)
    (pruning,) = Pipeline.parse(text).passes
    assert isinstance(pruning, Prune)
    context = PassContext(data=Dataset(feeds), seed=2)
    smaller = assert_equals_masked(model, pruning, feeds, context)
    if pruning.kind == "head" and pruning.measure == "count" and pruning.scope == "layer":
        softmax = [n.outputs[0] for n in smaller.graph if n.op_type == "Softmax"]
        assert [v.shape[1] for v in softmax if v.shape is not None] == [2, 2]


def test_heads_go_step_by_step_with_training_between() -> None:
    pytest.importorskip("torch")
    model, feeds = transformer("gpt", samples=40)
    # The next number is the last one: what a head can learn to copy.
    data = Dataset(feeds, feeds["ids"])
    text = "gradual{prune=prune{kind=head,importance=taylor},finetune=finetune{epochs=4,lr=0.003,validation=0.2},steps=2}"
    small = Pipeline.parse(text).run(model, PassContext(data=data))
    rows = small.history[-1].details["steps"]
    assert macs(small) == macs(Pipeline.parse("prune{kind=head}").run(model))
    assert rows[-1]["tuned"] > rows[0]["pruned"]


def test_heads_are_ranked_by_all_that_makes_them() -> None:
    """The head with the smallest query, key and value weights together goes."""
    model, feeds = transformer("bert")
    by_name = {v.name: v for v in model.graph.initializers.values()}
    for name in ("layer0.query", "layer0.key", "layer0.value"):
        array = np.array(by_name[f"{name}.weight"].const_value.numpy())  # type: ignore[union-attr]
        array[:, 8:16] *= 0.01
        by_name[f"{name}.weight"].const_value = ir.Tensor(array, name=f"{name}.weight")
    smaller = assert_equals_masked(model, Prune("head", 0.25), feeds)
    before = np.asarray(by_name["layer0.query.weight"].const_value.numpy())  # type: ignore[union-attr]
    after = next(v for v in smaller.graph.initializers.values() if v.name == "layer0.query.weight")
    assert np.array_equal(after.const_value.numpy(), np.delete(before, np.s_[8:16], axis=1))  # type: ignore[union-attr]


def test_branches_dropped_in_steps_are_as_many_as_at_once() -> None:
    model, _ = transformer("gpt")
    for amount, dropped in ((0.5, 2), (0.75, 3)):
        steps = Pipeline.parse(f"gradual{{prune=prune{{kind=layer,amount={amount}}},steps=3}}").run(model)
        once = Pipeline.parse(f"prune{{kind=layer,amount={amount}}}").run(model)
        assert macs(steps) == macs(once)
        assert len(once.history[-1].details["dropped"]) == dropped


def test_a_dropped_residual_block_keeps_the_convolution_on_the_shortcut() -> None:
    random = np.random.default_rng(0)
    model = graph(
        "(float[1,3,5,5] x) => (float[1,4,5,5] y) {"
        " s = Conv<kernel_shape=[1,1]>(x, p) a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, q) b = Relu(a)"
        " c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(b, r) d = Add(c, s) y = Relu(d) }",
        p=random.normal(size=(4, 3, 1, 1)).astype(np.float32), q=random.normal(size=(6, 3, 3, 3)).astype(np.float32),
        r=random.normal(size=(4, 6, 3, 3)).astype(np.float32),
    )  # fmt: skip
    feeds = {"x": random.normal(size=(2, 3, 5, 5)).astype(np.float32)}
    eye, one = np.eye(3, dtype=np.float32), np.ones(3, np.float32)
    other = graph("(float[1,3] x) => (float[1,3] y) { a = MatMul(x, p) y = Add(a, b) }", p=eye, b=one)
    with pytest.raises(PassError, match="no residual branch can go"):
        Pipeline.parse("prune{kind=layer}").run(other)
    two = Prune("layer", 0.9, exclude=("c",))
    with pytest.raises(PassError, match="no residual branch can go"):
        Pipeline((two,)).run(model)
    step = Pipeline.parse("prune{kind=layer,amount=0.9}").run(model).history[-1]
    assert step.details["dropped"] == []
    smaller = assert_equals_masked(model, Prune("layer", 0.99, measure="macs"), feeds)
    assert [n.op_type for n in smaller.graph] == ["Conv", "Relu"]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_a_share_of_the_multiply_accumulates(scope: str, share: float) -> None:
    model = build(4, ["conv", "relu", "conv", "residual", "conv_depthwise", "conv", "conv"])
    pruning = Prune("channel", share, scope=scope, measure="macs", least=0.0)  # type: ignore[arg-type]
    data = dataset(model, 3)
    smaller = assert_equals_masked(model, pruning, dict(data.inputs))
    assert macs(smaller) <= (1 - share) * macs(model)


def test_a_layer_of_one_vector_goes_down_to_half_of_it() -> None:
    small = Pipeline.parse("prune{kind=neuron,amount=0.5,pattern=hardware,device=skylake-avx512}").run(perceptron())
    assert [w.shape for w in weights(small)] == [(6, 8), (8, 4), (4, 3)]


def test_whole_vectors_stop_near_the_share() -> None:
    """Layers of 16, 32 and 16 units: with eights alone, the same fraction of all would go at once."""
    random = np.random.default_rng(0)
    sizes = (20, 16, 32, 16, 3)
    arrays = {f"w{i}": random.normal(size=(a, b)).astype(np.float32) for i, (a, b) in enumerate(itertools.pairwise(sizes))}
    model = graph(
        "(float[1,20] x) => (float[1,3] y) {"
        " a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c) e = MatMul(d, w2) f = Relu(e) y = MatMul(f, w3) }",
        **arrays,
    )  # fmt: skip
    text = "prune{kind=neuron,amount=0.4,measure=macs,pattern=hardware,device=znver3}"
    smaller = Pipeline.parse(text).run(model)
    assert all(w.shape[1] % 8 == 0 for w in weights(smaller)[:-1])
    assert 0.4 * macs(model) < macs(smaller) <= 0.6 * macs(model)


def test_what_costs_most_for_its_importance_goes_first() -> None:
    """Two hidden layers of equal weights: the one whose units cost more loses them."""
    model = graph(
        "(float[1,64] x) => (float[1,2] y) { a = MatMul(x, p) b = Relu(a) c = MatMul(b, q) d = Relu(c) y = MatMul(d, r) }",
        p=np.ones((64, 8), np.float32), q=np.ones((8, 8), np.float32), r=np.ones((8, 2), np.float32),
    )  # fmt: skip
    smaller = Pipeline.parse("prune{kind=neuron,amount=0.4,measure=macs,scope=global}").run(model)
    assert weights(smaller)[2].shape == (8, 2)
    assert weights(smaller)[0].shape[1] < 8


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], max_examples=40)
@given(float_models(), st.sampled_from([
    "prune{kind=neuron}", "prune{kind=layer,amount=0.9}", "prune{kind=channel,amount=0.3,measure=macs,scope=global}",
    "prune{kind=channel,amount=0.4,pattern=hardware,device=raspberry-pi-5}", "prune{kind=channel,importance=entropy,scope=global}",
]))  # fmt: skip
def test_any_graph_equals_its_masked_model(model: Model, text: str) -> None:
    (pruning,) = Pipeline.parse(text).passes
    context = PassContext(data=dataset(model, 8))
    assert isinstance(pruning, Prune)
    try:
        smaller, silent = Pipeline((pruning,)).run(model, context), masked(model, pruning, context)
    except PassError as error:
        # Proper refusals, tested above and below; anything else is not.
        assume(not any(known in str(error) for known in ("no layer can", "no residual", "no amount of", "every channel of", "unchanged")))
        raise
    x = dict(dataset(model, 3).inputs)
    left, right = Reference(smaller).run(x), Reference(silent).run(x)
    for name in left:
        assert relative_error(right[name], left[name]) <= tolerance(model)


def test_gradients_of_weights_that_are_stored_as_integers() -> None:
    pytest.importorskip("torch")
    model = graph(
        "(float[1,3] x) => (float[1,3] y) { w = DequantizeLinear<axis=1>(q, s, z) a = MatMul(x, w) y = MatMul(a, v) }",
        q=np.asarray([[10, 5], [7, 90], [3, 7]], np.int8), s=np.asarray(0.5, np.float32), z=np.asarray(4, np.int8),
        v=np.ones((2, 3), np.float32) + np.eye(2, 3, dtype=np.float32),
    )  # fmt: skip
    small = Pipeline.parse("prune{importance=taylor,exclude=y}").run(model, labelled(model))
    (q,) = [np.asarray(v.const_value.numpy()) for v in small.graph.initializers.values() if v.name == "q"]  # type: ignore[union-attr]
    assert (q == 4).sum() == 3


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_an_amount_that_would_empty_a_layer_names_it() -> None:
    model = graph(
        "(float[1,2] x) => (float[1,2] y) { a = MatMul(x, p) y = MatMul(a, q) }",
        p=np.full((2, 2), 0.1, np.float32), q=np.ones((2, 2), np.float32),
    )  # fmt: skip
    for text in ("prune{scope=global}", "prune{threshold=0.5}", "prune{kind=block,scope=global}"):
        with pytest.raises(PassError, match=r"nothing would be left of '\w+'"):
            Pipeline.parse(text).run(model)
    with pytest.raises(PassError, match=r"no amount of units saves 99\.0% of the cost; with all that can go it is 96\.0%"):
        Pipeline.parse("prune{kind=neuron,amount=0.99,measure=macs}").run(perceptron())


@pytest.mark.parametrize(("text", "message"), [
    ("prune{kind=head}", "no attention heads"), ("prune{kind=layer}", "no residual branch"),
    ("prune{pattern=hardware,device=host}", "gains nothing from single zeros"),
    ("prune{pattern=hardware,device=pynq-z2,reuse=4}", "zeros save nothing"),
    ("prune{kind=block,pattern=hardware,device=pynq-z2}", "no vectors"),
    ("prune{kind=neuron,measure=device,device=host}", "counts an FPGA's LUTs"), ("prune{device=nowhere}", "no device 'nowhere'"),
])  # fmt: skip
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(GatewrightError, match=message):
        Pipeline.parse(text).run(perceptron())


def test_pipelines_are_their_text() -> None:
    for text in ("prune{kind=nm,importance=taylor,n=1}", "prune{kind=block,amount=0.9,threshold=0.25,block=8}"):
        assert str(Pipeline.parse(text)) == text
    with pytest.raises(UsageError, match="measure"):
        Pipeline.parse("prune{kind=magnitude,measure=macs}")
