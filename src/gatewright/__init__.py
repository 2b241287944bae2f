"""gatewright: a trained model and a piece of hardware in, something that runs there out, with the evidence.

Everything a user calls is here: ``load``, ``transform``, ``check``, ``compile``, ``build``, ``compare``, ``combine``, ``optimize``, and the
types they take and give. The names are resolved on first use, so that ``import gatewright`` stays instant.
Read ``runtime/driver.py`` next: it is the whole flow on one page.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatewright.errors import GatewrightError as GatewrightError
    from gatewright.frontend.coded import save_compressed as save_compressed
    from gatewright.frontend.data import Dataset as Dataset
    from gatewright.frontend.data import Input as Input
    from gatewright.frontend.limits import Limits as Limits
    from gatewright.frontend.model import Model as Model
    from gatewright.hw.measurement import Measurement as Measurement
    from gatewright.passes.pipeline import Pipeline as Pipeline
    from gatewright.runtime.driver import build as build
    from gatewright.runtime.driver import check as check
    from gatewright.runtime.driver import combine as combine
    from gatewright.runtime.driver import compare as compare
    from gatewright.runtime.driver import compile as compile
    from gatewright.runtime.driver import optimize as optimize
    from gatewright.runtime.driver import transform as transform
    from gatewright.runtime.front import Front as Front
    from gatewright.runtime.loading import load as load
    from gatewright.runtime.report import Report as Report
    from gatewright.targets.base import Artifact as Artifact
    from gatewright.targets.base import Executor as Executor

_HOMES = {
    "Artifact": "targets.base",
    "Dataset": "frontend.data",
    "Executor": "targets.base",
    "Front": "runtime.front",
    "GatewrightError": "errors",
    "Input": "frontend.data",
    "Limits": "frontend.limits",
    "Measurement": "hw.measurement",
    "Model": "frontend.model",
    "Pipeline": "passes.pipeline",
    "Report": "runtime.report",
    "build": "runtime.driver",
    "check": "runtime.driver",
    "combine": "runtime.driver",
    "compare": "runtime.driver",
    "compile": "runtime.driver",
    "load": "runtime.loading",
    "save_compressed": "frontend.coded",
    "optimize": "runtime.driver",
    "transform": "runtime.driver",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gatewright' has no attribute {name!r}")
    return getattr(import_module(f"gatewright.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
