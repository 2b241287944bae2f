"""ONNX's Backend API; what there is stands in ``runtime/backend.py``."""

from gatewright.runtime.backend import Prepared, TargetBackend, is_compatible, of, prepare, run_model, run_node, supports_device

__all__ = ["Prepared", "TargetBackend", "is_compatible", "of", "prepare", "run_model", "run_node", "supports_device"]
