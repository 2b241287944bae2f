"""Channel pruning by 30 %: MACs and bytes of the file before and after, equality with the masked model, accuracy in one ``compare``.

    python bench/pruning.py --shared ../shared

The masked model keeps its shapes; what pruning removes is zero in it. The pruned model must give the same outputs, up to
float32 sums in another order: the largest difference relative to the largest output is printed. No fine-tuning follows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from exactness import Job, digits, images
from rich.console import Console
from rich.table import Table

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.frontend.reference import Reference
from gatewright.frontend.work import macs
from gatewright.passes.prune import Prune, masked

AMOUNT = 0.3


def jobs(shared: Path) -> Iterator[Job]:
    yield from (job for job in digits() if job.name == "digits_cnn")
    try:
        yield images(shared)
    except (GatewrightError, OSError) as error:
        print(f"skipped tiny_ic_resnet8: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    arguments = parser.parse_args()
    table = Table("model", "MACs", "file bytes", "against masked: largest difference", "accuracy before", "after", "after, int8")
    for job in jobs(arguments.shared):
        fused = gw.transform(job.model, "fuse", data=job.calibration)
        smaller = gw.transform(fused, f"prune{{kind=channel,amount={AMOUNT}}}").renamed(f"{job.name}_pruned")
        silent = masked(fused, Prune("channel", AMOUNT))
        feeds = job.test.feeds(fused.inputs)
        got, wanted = Reference(smaller).run(feeds), Reference(silent).run(feeds)
        difference = max(float(np.abs(got[n] - wanted[n]).max() / np.abs(wanted[n]).max()) for n in wanted)
        int8 = gw.transform(smaller, "quantize{bits=8,grid=pow2,per=channel}", data=job.calibration).renamed(f"{job.name}_pruned_int8")
        report = gw.compare([job.model, smaller, int8], ["ref"], job.test, "accuracy").to_json()
        scores = [f"{row['metric']['value']:.3f}" for row in report["rows"]]
        table.add_row(
            job.name, f"{macs(job.model):,} → {macs(smaller):,}", f"{len(job.model.to_bytes()):,} → {len(smaller.to_bytes()):,}",
            f"{difference:.1e}", *scores,
        )  # fmt: skip
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
