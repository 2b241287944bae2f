"""The JSON schema of a report, from the design: the contract for scripts."""

from __future__ import annotations

from typing import Any

FIGURE: dict[str, Any] = {
    "oneOf": [
        {"type": "null"},
        {
            "type": "object",
            "required": ["value", "unit", "source"],
            "additionalProperties": False,
            "properties": {
                "value": {"type": "number"},
                "unit": {"type": "string", "minLength": 1},
                "source": {"enum": ["estimated", "emulated", "simulated", "synthesized", "measured", "published"]},
            },
        },
    ]
}
LATENCY = {**FIGURE, "not": {"type": "object", "properties": {"source": {"const": "emulated"}}, "required": ["source"]}}
ERROR: dict[str, Any] = {
    "oneOf": [
        {"type": "null"},
        {
            "type": "object",
            "required": ["max_abs", "mismatching_samples", "top1_changed"],
            "additionalProperties": False,
            "properties": {
                "max_abs": {"type": ["number", "null"], "minimum": 0},
                "mismatching_samples": {"type": "integer", "minimum": 0},
                "top1_changed": {"type": ["integer", "null"], "minimum": 0},
            },
        },
    ]
}
LAYER: dict[str, Any] = {
    "type": "object",
    "required": ["name", "sqnr_db", "max_abs_error", "saturated"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "sqnr_db": {"type": ["number", "null"]},
        "max_abs_error": {"type": ["number", "null"], "minimum": 0},
        "saturated": {"type": "integer", "minimum": 0},
    },
}
PART: dict[str, Any] = {
    "type": "object",
    "required": ["target", "nodes", "reasons", "macs", "received_bytes", "seconds"],
    "additionalProperties": False,
    "properties": {
        "target": {"type": "string"},
        "nodes": {"type": "integer", "minimum": 1},
        "reasons": {"type": "object", "additionalProperties": {"type": "string"}},
        "macs": {"type": "integer", "minimum": 0},
        "received_bytes": {"type": "integer", "minimum": 0},
        "seconds": {"type": ["number", "null"], "minimum": 0},
    },
}
ROW: dict[str, Any] = {
    "type": "object",
    "required": [
        "model", "target", "status", "reason", "metric", "error", "first_diverging_layer", "layers", "latency", "throughput",
        "emulation_rate", "peak_memory", "artifact_size", "resources", "energy", "build_time", "parts",
    ],
    "additionalProperties": False,
    "properties": {
        "model": {"type": "string"},
        "target": {"type": "string"},
        "status": {"enum": ["ok", "unsupported", "does_not_fit", "tool_missing", "failed"]},
        "reason": {"type": ["string", "null"]},
        "metric": FIGURE,
        "error": {
            "type": "object",
            "required": ["ref", "baseline"],
            "additionalProperties": False,
            "properties": {"ref": ERROR, "baseline": ERROR},
        },
        "first_diverging_layer": {"type": ["string", "null"]},
        "layers": {"type": "array", "items": LAYER},
        "latency": LATENCY,
        "throughput": FIGURE,
        "emulation_rate": FIGURE,
        "peak_memory": FIGURE,
        "artifact_size": FIGURE,
        "resources": {"type": ["object", "null"], "additionalProperties": FIGURE},
        "energy": FIGURE,
        "build_time": FIGURE,
        "parts": {"type": "array", "items": PART},
    },
    # What is not ok says why; what is ok has its metric.
    "if": {"properties": {"status": {"const": "ok"}}},
    "then": {"properties": {"metric": {"type": "object"}, "reason": {"type": "null"}}},
    "else": {"properties": {"reason": {"type": "string", "minLength": 1}}},
}  # fmt: skip
REPORT: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["schema", "data", "models", "rows"],
    "properties": {
        "schema": {"const": 1},
        "data": {
            "type": "object",
            "required": ["samples", "digest"],
            "properties": {"samples": {"type": "integer", "minimum": 1}, "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
        },
        "models": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "digest"],
                "properties": {"name": {"type": "string"}, "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
            },
        },
        "rows": {"type": "array", "items": ROW},
    },
}
