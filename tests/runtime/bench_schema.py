"""The schema of ``bench --json``: what scripts may rely on."""

from __future__ import annotations

from typing import Any

FIGURE: dict[str, Any] = {
    "anyOf": [
        {"type": "null"},
        {
            "type": "object",
            "required": ["value", "unit", "source"],
            "additionalProperties": False,
            "properties": {"value": {"type": "number"}, "unit": {"type": "string"}, "source": {"const": "measured"}},
        },
    ]
}
RATIO = {
    "type": "object",
    "required": ["value", "low", "high"],
    "additionalProperties": False,
    "properties": {key: {"type": "number", "exclusiveMinimum": 0} for key in ("value", "low", "high")},
}
ROW = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "model", "batch", "engine", "is_target", "transformed", "status", "reason", "latency", "low", "high", "runs", "throughput", "error",
        "ratios", "peak_memory", "baseline_memory", "compile_time", "notes",
        "kernels",
    ],
    "properties": {
        "model": {"type": "string"},
        "batch": {"type": "integer", "minimum": 1},
        "engine": {"type": "string"},
        "is_target": {"type": "boolean"},
        "transformed": {"type": "boolean"},
        "status": {"enum": ["ok", "unsupported", "does_not_fit", "tool_missing", "failed"]},
        "reason": {"type": ["string", "null"]},
        **dict.fromkeys(("latency", "low", "high", "throughput", "peak_memory", "baseline_memory", "compile_time"), FIGURE),
        "runs": {"type": "integer", "minimum": 0},
        "error": {"type": ["object", "null"], "required": ["max_abs", "relative", "mismatching_samples", "top1_changed"]},
        "ratios": {"type": "object", "additionalProperties": RATIO},
        "notes": {"type": "array", "items": {"type": "string"}},
        "kernels": {"type": "array", "items": {"type": "object", "required": ["op", "shape", "seconds", "share"]}},
    },
}  # fmt: skip
BENCH: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["schema", "device", "threads", "pipeline", "versions", "blocks", "targets", "against", "rows", "means"],
    "properties": {
        "schema": {"const": 1},
        "device": {"type": "object"},
        "threads": {"type": "integer", "minimum": 1},
        "pipeline": {"type": ["string", "null"]},
        "versions": {"type": "object", "required": ["gatewright"], "additionalProperties": {"type": "string"}},
        "blocks": {"type": "object", "required": ["runs", "dropped", "pause_s", "rounds"]},
        "targets": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "against": {"type": "array", "items": {"type": "string"}},
        "rows": {"type": "array", "items": ROW},
        "means": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["target", "batch", "against", "value", "models", "worst", "worst_model"],
                "properties": {
                    **{key: {"type": "string"} for key in ("target", "against", "worst_model")},
                    **{key: {"type": "integer", "minimum": 1} for key in ("batch", "models")},
                    **{key: {"type": "number", "exclusiveMinimum": 0} for key in ("value", "worst")},
                },
            },
        },
    },
}
