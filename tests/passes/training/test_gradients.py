"""Per-sample gradients against formulas and against one sample at a time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from graphs import graph  # noqa: E402
from tasks import bars, clusters, cnn, mlp, weights  # noqa: E402

from gatewright.errors import DataError  # noqa: E402
from gatewright.frontend.data import Dataset  # noqa: E402
from gatewright.passes.training.gradients import importance  # noqa: E402


def test_a_linear_model_by_hand() -> None:
    """L_n = mean over outputs of (x·w + b − y)²: ∂L_n/∂w = 2/2·x⊗error."""
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(70, 4)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32), np.ones(2, np.float32)
    y = rng.normal(size=(70, 2)).astype(np.float32)
    model = graph("(float[1,4] x) => (float[1,2] y) { y = Gemm(x, w, b) }", w=w, b=b)
    each = x[:, :, None] * (x @ w + b - y)[:, None, :]
    data = Dataset({"x": x}, y)
    np.testing.assert_allclose(importance(model, data)["w"], np.abs(each).mean(0), rtol=1e-5)
    np.testing.assert_allclose(importance(model, data, "taylor")["w"], np.abs(each * w).mean(0), rtol=1e-5)
    np.testing.assert_allclose(importance(model, data, "fisher")["w"], (each**2).mean(0), rtol=1e-5)
    assert (importance(model, data)["w"] > np.abs(each.mean(0))).all(), "magnitudes are taken before the mean"


def test_a_chunk_of_samples_is_what_single_ones_give() -> None:
    model = cnn()
    together = importance(model, bars(20))
    alone = [importance(model, bars(20).slice(i, i + 1)) for i in range(20)]
    for name in together:
        np.testing.assert_allclose(together[name], np.mean([a[name] for a in alone], axis=0), rtol=1e-4, atol=1e-8)
    assert together.keys() == {"k", "b", "scale", "shift", "w", "v"}


def test_a_model_that_mixes_samples_is_run_one_by_one() -> None:
    fixed = mlp(tail="s = Constant<value = int64[3] {1, 1, 3}>() u = Reshape(z, s) t = Transpose<perm = [1, 0, 2]>(u) "
                     "v = Constant<value = int64[2] {1, 3}>() y = Reshape(t, v)")  # fmt: skip
    a, b = (importance(m, clusters(9)) for m in (fixed, mlp(tail="y = Identity(z)")))
    for name in weights(mlp()):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def test_no_labels() -> None:
    with pytest.raises(DataError, match="learns from labels"):
        importance(mlp(), Dataset({"x": np.zeros((5, 4), np.float32)}))


def test_without_torch_it_says_what_to_install() -> None:
    """Pipelines parse, and running one names the extra; nothing of it is imported before."""
    code = (
        "import sys; sys.modules['torch'] = None; import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a)\n"
        "from gatewright.errors import ToolMissing; from gatewright.passes.base import PassContext\n"
        "from gatewright.passes.pipeline import Pipeline\n"
        "for text in ('finetune', 'qat{bits=4}', 'distil{width=0.5}'):\n"
        "    try: Pipeline.parse(text).passes[0].run(None, PassContext())\n"
        "    except ToolMissing as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'gatewright[torch]'") == 3
