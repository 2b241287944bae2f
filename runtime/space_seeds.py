"""Where a search begins: candidates that people who know the methods would try on a target, cheap ones first.

Each names the decisions that matter to it (``space.py``); all else is plain. Amounts, widths and rates were found on small image
classifiers; the search goes on from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .space import Choices, Gains

_LONG: Mapping[str, str | float | int] = {"lesson_epochs": 30, "lesson_lr": 0.01, "qat_epochs": 60, "qat_lr": 0.01}
_SHORT: Mapping[str, str | float | int] = {"lesson_epochs": 30, "lesson_lr": 0.003}


def seeds_of(gains: Gains) -> Iterator[Choices]:
    """Uniform 8-bit quantization first, in the plainest way that the methods have."""
    yield {"rounding": "quantize", "prune": "none"}
    yield {}
    if not gains.must_quantize:
        yield {"rounding": "none"}
    if gains.shared:
        yield from _shared()
    if gains.fpga is not None:
        yield from _logic()
    else:
        yield from _units()


def _logic() -> Iterator[Choices]:
    """Adders: fewer digits of fewer weights."""
    for bits in (6, 4):
        yield {"rounding": "quantize", "bits": bits, "weight_bits": bits, "range": "mse", "per": "channel"}
    sparse: Choices = {"prune": "magnitude", "lesson": "gradual", **_LONG, "per": "channel", "range": "mse"}
    narrower: Choices = {"narrower": "yes", "narrower_amount": 0.25}
    taught: Choices = {"rounding": "taught", "bits": 4, "weight_bits": 4, "answers": "wide"}
    learned: Choices = {"rounding": "qat", "bits": 4, "weight_bits": 3}
    yield {**sparse, **narrower, "magnitude_amount": 0.65, **learned}
    yield {**sparse, **narrower, "magnitude_amount": 0.7, **learned, "answers": "wide"}
    yield {**sparse, "magnitude_amount": 0.8, **taught}
    yield {**sparse, "magnitude_amount": 0.5, **taught}
    yield {**sparse, **narrower, "magnitude_amount": 0.75, **taught}
    yield {**sparse, "magnitude_amount": 0.6, **learned, "weight_bits": 2}
    yield {**sparse, "magnitude_amount": 0.85, **taught, "bits": 5}
    yield {**sparse, "magnitude_amount": 0.5, "rounding": "quantize", "bits": 6, "weight_bits": 6}


def _units() -> Iterator[Choices]:
    """Whole units, 8-bit kernels; single zeros and narrow weights gain nothing."""
    yield {"rounding": "quantize", "grid": "symmetric", "per": "channel", "range": "mse"}
    for amount in (0.25, 0.5, 0.7):
        for lesson in ("finetune", "distil", "gradual"):
            yield {"prune": "channel", "channel_amount": amount, "lesson": lesson, **_SHORT, "rounding": "quantize", "per": "channel"}
    yield {"prune": "channel", "channel_amount": 0.5, "repair": "reconstruct", "rounding": "quantize", "per": "channel"}


def _shared() -> Iterator[Choices]:
    """Short codes in a file: pruned and clustered (Han, Mao, Dally 2016)."""
    for amount, bits in ((0.5, 5), (0.8, 4), (0.9, 4)):
        yield {"prune": "magnitude", "magnitude_amount": amount, "lesson": "gradual", **_LONG, "cluster": "yes", "cluster_bits": bits}
