"""Seconds that ``import gatewright`` takes: the median of 15 fresh interpreters, less an interpreter that imports nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    pairs = [(seconds("import gatewright"), seconds("pass")) for _ in range(15)]
    print(f"import gatewright: {statistics.median(a - b for a, b in pairs) * 1000:.0f} ms")


if __name__ == "__main__":
    main()
