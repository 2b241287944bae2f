"""Coverage-guided fuzzing of the loader: pip install 'gatewright[fuzz]', then

    python tests/fuzz/fuzz_load.py FOLDER [-max_total_time=600]

FOLDER keeps what was found interesting, so that the next run goes on from there. Whatever is neither a model nor refused by an error
that a user can act on (another exception, a crash of a library, over ten seconds, over 4 GB) ends the run and is left as a file
crash-… or timeout-…; it goes into tests/fuzz/found, which test_found.py loads. Options are libFuzzer's.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gatewright", "onnx_ir"]):
    from gatewright.errors import GatewrightError
    from gatewright.frontend.limits import MIB, Limits
    from gatewright.frontend.load import load

sys.path.insert(0, str(Path(__file__).parent))
import seeds
from mutation import mutated

LIMITS = Limits(file_bytes=MIB, weight_bytes=64 * MIB, tensor_bytes=16 * MIB, folded_bytes=MIB, nodes=2000)


def one(data: bytes) -> None:
    """Fails unless ``data`` loads or is refused."""
    try:
        # In this process: here a crash is what is looked for.
        load(data, limits=LIMITS, trust=True)
    except (GatewrightError, MemoryError):
        return


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Mostly a changed field of the model, now and then changed bytes."""
    rng = random.Random(seed)
    changed = mutated(data, rng) if rng.random() < 0.9 else None
    return (changed if changed is not None and len(changed) <= max_size else atheris.Mutate(data, max_size))[:max_size]


def main() -> None:
    folders = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name, proto in seeds.models().items():
            (folder / name).write_bytes(proto.SerializeToString())
    atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=4096", "-max_len=8192", *sys.argv[1:]], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
