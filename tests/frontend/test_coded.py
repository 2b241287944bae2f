"""Coded files: exact in both directions, small where weights are few or alike, and refused where they are damaged."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import graph
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dataset, quantized_models

import gatewright as gw
from gatewright.errors import ModelError
from gatewright.frontend import coded, huffman
from gatewright.frontend.limits import Limits
from gatewright.frontend.model import Model
from gatewright.passes.pipeline import Pipeline


def sparse(values: int = 8, size: int = 200, density: float = 0.1, seed: int = 0) -> Model:
    random = np.random.default_rng(seed)
    book = random.normal(size=values).astype(np.float32)
    w = np.where(random.random((size, 64)) < density, random.choice(book, (size, 64)), np.float32(0))
    return graph(f"(float[1,{size}] x) => (float[1,64] y) {{ y = MatMul(x, w) }}", w=w)


# ---- Huffman codes -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from([0, 1, 2, 1023, 1024, 1025, 5000]), st.floats(0.01, 4))
def test_streams_come_back(seed: int, alphabet: int, count: int, skew: float) -> None:
    random = np.random.default_rng(seed)
    share = np.exp(-skew * np.arange(alphabet))
    symbols = random.choice(alphabet, count, p=share / share.sum())
    data = huffman.encode(symbols, alphabet)
    reader = huffman.Reader(memoryview(data))
    assert np.array_equal(huffman.decode(reader, count, alphabet), symbols)
    assert reader.position == len(data)


def test_lengths_are_those_of_the_best_prefix_code() -> None:
    """Frequencies of a textbook (CLRS, figure 16.3): a 45, b 13, c 12, d 16, e 9, f 5 take 224 bits."""
    counts = np.asarray([45, 13, 12, 16, 9, 5])
    lengths = huffman.code_lengths(counts)
    assert lengths.tolist() == [1, 3, 3, 3, 4, 4]
    assert (counts * lengths).sum() == 224
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    limited = huffman.code_lengths(np.asarray(fibonacci))
    assert limited.max() == huffman.LONGEST
    assert (2.0**-limited).sum() <= 1


def test_codes_are_decodable_one_by_one() -> None:
    """An independent decoder: bit by bit, by the canonical codes."""
    symbols = np.random.default_rng(0).geometric(0.3, 3000).clip(max=20)
    data = huffman.encode(symbols, 21)
    count, alphabet = struct.unpack_from("<IH", data)
    lengths = [data[6 + i // 2] >> (0 if i % 2 else 4) & 15 for i in range(alphabet)]
    payload = data[6 + (alphabet + 1) // 2 + 4 * 3 + 4 :]
    code, codes = 0, {}
    for length in range(1, 16):
        for symbol in range(alphabet):
            if lengths[symbol] == length:
                codes[length, code] = symbol
                code += 1
        code <<= 1
    found, value, length = [], 0, 0
    for byte in payload:
        for place in range(7, -1, -1):
            value, length = value << 1 | byte >> place & 1, length + 1
            if (length, value) in codes and len(found) < count:
                found.append(codes[length, value])
                value = length = 0
    assert found == symbols.tolist()


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0005, 0.05, 0.5, 1.0])
def test_the_same_model_comes_back(tmp_path: Path, density: float) -> None:
    model = sparse(density=density)
    size = gw.save_compressed(model, tmp_path / "m.gwz")
    back = gw.load(tmp_path / "m.gwz")
    assert back.digest == model.digest
    assert back.history[:-1] == model.history
    assert size.bytes == (tmp_path / "m.gwz").stat().st_size
    assert size.onnx_bytes == len(model.to_bytes())
    assert coded.decode((tmp_path / "m.gwz").read_bytes(), Limits(), "m").SerializeToString(deterministic=True) == model.to_bytes()
    assert gw.load((tmp_path / "m.gwz").read_bytes()).digest == model.digest


def test_bits_that_equal_no_number_come_back(tmp_path: Path) -> None:
    odd = np.zeros((64, 64), np.float32)
    odd[0, :4] = [-0.0, np.inf, 1e-45, -1.5]
    odd[63, 63] = 2
    model = graph("(float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=odd)
    gw.save_compressed(model, tmp_path / "m.gwz")
    (value,) = (v for v in gw.load(tmp_path / "m.gwz").graph.initializers.values())
    assert value.const_value is not None
    assert value.const_value.numpy().tobytes() == odd.tobytes()


@settings(deadline=None, max_examples=15)
@given(quantized_models())
def test_any_model_can_be_saved_so(model: Model) -> None:
    data, _ = coded.encode(model)
    assert gw.load(data).digest == model.digest


def test_a_gap_longer_than_a_symbol() -> None:
    random = np.random.default_rng(0)
    w = np.zeros((1000, 64), np.float32)
    places = np.cumsum(random.choice([1, 2, 254, 255, 256, 257, 510, 511, 512, 766], 150))
    w.reshape(-1)[[0, *places, 63_999]] = random.choice(np.asarray([1, 2, 5], np.float32), 152)
    model = graph("(float[1,1000] x) => (float[1,64] y) { y = MatMul(x, w) }", w=w)
    data, size = coded.encode(model)
    assert "w" in size.tensors
    assert gw.load(data).digest == model.digest


def test_pruned_weights_without_a_codebook_are_listed() -> None:
    random = np.random.default_rng(0)
    w = np.where(random.random((2000, 64)) < 0.05, random.normal(size=(2000, 64)), 0).astype(np.float32)
    model = graph("(float[1,2000] x) => (float[1,64] y) { y = MatMul(x, w) }", w=w)
    data, size = coded.encode(model)
    assert size.tensors["w"][1] < np.count_nonzero(w) * 4.9
    assert gw.load(data).digest == model.digest
    for end in range(24, len(data), 997):
        with pytest.raises(ModelError):
            gw.load(data[:end], trust=True)


def test_size_is_near_the_entropy() -> None:
    """32 values in a tenth of 64,000 weights: 5 bits a value and H(0.1)/0.1 = 4.7 bits a gap."""
    model = sparse(values=32, size=1000)
    data, size = coded.encode(model)
    before, after = size.tensors["w"]
    assert before == 256_000
    assert after < 1.1 * 6400 * (5 + 4.69) / 8
    assert len(data) < after + 600
    assert size.ratio > 25


def test_pruned_and_clustered_models_quantize_as_their_originals(tmp_path: Path) -> None:
    model = sparse()
    gw.save_compressed(model, tmp_path / "m.gwz")
    text = "quantize{bits=8}"
    data = dataset(model)
    assert gw.transform(gw.load(tmp_path / "m.gwz"), text, data).digest == gw.transform(model, text, data).digest


# ---- damaged files -------------------------------------------------------------------------------------------------


def test_every_cut_is_refused() -> None:
    data, _ = coded.encode(sparse(size=64))
    for end in [*range(8, 60), *range(60, len(data), 37), len(data) - 1]:
        with pytest.raises(ModelError):
            gw.load(data[:end], trust=True)
    with pytest.raises(ModelError, match="left over"):
        gw.load(data + b"\0")


def test_flipped_bits_are_refused_or_harmless() -> None:
    """Whatever a damaged file holds: a ModelError or some model, in no time, never another exception."""
    data, _ = coded.encode(sparse(size=64))
    random = np.random.default_rng(0)
    started = time.monotonic()
    refused = 0
    for _ in range(250):
        damaged = bytearray(data)
        for place in random.integers(8, len(data), random.integers(1, 4)):
            damaged[place] ^= 1 << int(random.integers(8))
        try:
            gw.load(bytes(damaged), trust=True)
        except ModelError:
            refused += 1
    assert refused > 100
    assert time.monotonic() - started < 60


def bomb(**changes: int) -> bytes:
    """A file of a few hundred bytes whose weight claims to be large."""
    data, _ = coded.encode(sparse(size=64))
    deflated, _ = struct.unpack_from("<QQ", data, 8)
    proto = onnx.ModelProto.FromString(zlib.decompress(data[24 : 24 + deflated]))
    proto.graph.initializer[0].dims[:] = [changes.get("rows", 64), 64]
    if changes.get("type"):
        proto.graph.initializer[0].data_type = changes["type"]
    packed = zlib.compress(proto.SerializeToString())
    length = changes.get("inflated", proto.ByteSize())
    return data[:8] + struct.pack("<QQ", len(packed), length) + packed + data[24 + deflated :]


@pytest.mark.parametrize(("changes", "message"), [
    ({"rows": 1 << 40}, "would take"), ({"rows": 1 << 24}, "would take"), ({"rows": -4}, "negative size"), ({"rows": 3}, "damaged"),
    ({"type": 99}, "99 is not one of"), ({"type": 8}, "damaged"), ({"inflated": 1 << 50}, "its graph would take"),
    ({"inflated": 10}, "not the length"),
])  # fmt: skip
def test_claims_are_checked_before_memory_is_taken(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        gw.load(bomb(**changes))


def test_weights_that_are_all_alike_come_back() -> None:
    """Coded they would take so little that a reader would not believe the file."""
    model = graph("(float[1,3000] x) => (float[1,700] y) { y = MatMul(x, w) }", w=np.full((3000, 700), 0.5, np.float32))
    data, size = coded.encode(model)
    assert gw.load(data).digest == model.digest
    assert len(data) < 20_000
    assert not size.tensors


def test_limits_hold() -> None:
    data, _ = coded.encode(sparse(size=64))
    with pytest.raises(ModelError, match="would take"):
        gw.load(data, limits=Limits(tensor_bytes=1000))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a folder"):
        gw.save_compressed(sparse(), tmp_path / "nowhere" / "m.gwz")
    assert not list(tmp_path.iterdir())


def test_a_real_model(tmp_path: Path, shared_model: Callable[[str], Path]) -> None:
    model = gw.load(shared_model("mnist_cntk.onnx"))
    small = Pipeline.parse("prune{amount=0.9},cluster{bits=5}").run(model)
    size = gw.save_compressed(small, tmp_path / "m.gwz")
    assert gw.load(tmp_path / "m.gwz").digest == small.digest
    assert size.ratio > 12
