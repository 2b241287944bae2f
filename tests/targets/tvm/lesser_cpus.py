"""This machine as if it had fewer instructions, by the dot-product instruction that is then the best for 16 outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gatewright.hw.device import Processor, host

_AVX512 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})
_AVX2 = frozenset({"sse3", "ssse3", "sse4.1", "sse4.2", "avx", "avx2", "fma", "f16c", "bmi2"})

CPUS: dict[str, tuple[int, str, frozenset[str]]] = {
    # vector_bits, mcpu, features
    "vpdpbusd512": (512, "x86-64-v4", _AVX512 | _AVX2 | {"avx512vnni", "avx512vbmi"}),
    "vpdpbusd256": (256, "x86-64-v3", _AVX2 | {"avx512vl", "avx512f", "avx512bw", "avx512vnni"}),
    "vpmaddwd512": (512, "x86-64-v4", _AVX512 | _AVX2),
    "vpmaddwd256": (256, "x86-64-v3", _AVX2),
    "pmaddwd128": (128, "x86-64-v2", frozenset({"sse3", "ssse3", "sse4.1", "sse4.2"})),
}
"""By the instruction that has to be taken for 16 outputs."""


def lesser(name: str) -> Processor:
    """This machine with no more than ``CPUS[name]``; skips the test where it has less."""
    bits, mcpu, isa = CPUS[name]
    own = host()
    if missing := sorted(isa - set(own.isa)):
        pytest.skip(f"this machine has no {', '.join(missing)}")
    return replace(own, vector_bits=bits, mcpu=mcpu, isa=tuple(sorted(isa)))
