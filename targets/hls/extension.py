"""Our layers as hls4ml knows them: layer classes, C++ templates, the header that implements them.

Imported only by ``generate.py``, in its own process; importing it imports hls4ml.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hls4ml.backends import get_backend
from hls4ml.backends.oneapi.oneapi_template import StreamFunctionCallTemplate, TaskSequenceTemplate
from hls4ml.backends.template import FunctionCallTemplate, LayerConfigTemplate
from hls4ml.model.attributes import Attribute, ConfigurableAttribute, TypeAttribute, WeightAttribute
from hls4ml.model.layers import Layer, register_layer

from .backends import BACKENDS

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_HEADERS = {backend.hls4ml: backend.header for backend in BACKENDS.values()}


class Requantize(Layer):  # type: ignore[misc]
    _expected_attributes = [
        Attribute("lowest", value_type=float), Attribute("highest", value_type=float),
        TypeAttribute("wide"), WeightAttribute("scale"), TypeAttribute("scale"), WeightAttribute("bias"), TypeAttribute("bias"),
        ConfigurableAttribute("reuse_factor", default=1),
    ]  # fmt: skip

    def initialize(self) -> None:
        self.add_output_variable(self.get_input_variable().shape)
        self._set_type_t("wide")
        self.add_weights_variable(name="scale", var_name="s{index}")
        self.add_weights_variable(name="bias", var_name="b{index}")


class Lookup(Layer):  # type: ignore[misc]
    _expected_attributes = [WeightAttribute("table"), TypeAttribute("table"), ConfigurableAttribute("reuse_factor", default=1)]

    def initialize(self) -> None:
        self.add_output_variable(self.get_input_variable().shape)
        self.add_weights_variable(name="table", var_name="t{index}")


class GlobalSum(Layer):  # type: ignore[misc]
    _expected_attributes = [Attribute("n_positions"), Attribute("n_chan"), ConfigurableAttribute("reuse_factor", default=1)]

    def initialize(self) -> None:
        self.add_output_variable([self.attributes["n_chan"]])


class Gather(Layer):  # type: ignore[misc]
    _expected_attributes = [Attribute("target_shape", value_type=list), WeightAttribute("source"), TypeAttribute("source")]

    def initialize(self) -> None:
        self.add_output_variable(list(self.attributes["target_shape"]))
        self.add_weights_variable(name="source", var_name="i{index}")


_WINDOW = (
    "in_height", "in_width", "n_filt", "out_height", "out_width", "pool_height", "pool_width", "stride_height", "stride_width",
    "pad_top", "pad_bottom", "pad_left", "pad_right",
)  # fmt: skip


class WindowMax(Layer):  # type: ignore[misc]
    _expected_attributes = [*(Attribute(name) for name in _WINDOW), Attribute("lowest", value_type=float)]

    def initialize(self) -> None:
        self.add_output_variable([self.attributes[name] for name in ("out_height", "out_width", "n_filt")])


_REQUANTIZE = """struct config{index} {{
    static const unsigned n_in = {n_in};
    static const unsigned n_scale = {n_scale};
    static const unsigned reuse_factor = {reuse};
    static const unsigned multipliers = {multipliers};
    static double lowest() {{ return {lowest}; }}
    static double highest() {{ return {highest}; }}
    typedef {wide_t.name} wide_t;
    typedef {scale_t.name} scale_t;
    typedef {bias_t.name} bias_t;
}};\n"""

_LOOKUP = """struct config{index} {{
    static const unsigned n_in = {n_in};
    static const unsigned n_table = {n_table};
    static const unsigned reuse_factor = {reuse};
    typedef {table_t.name} table_t;
}};\n"""

_GLOBAL_SUM = """struct config{index} {{
    static const unsigned n_positions = {n_positions};
    static const unsigned n_chan = {n_chan};
    static const unsigned reuse_factor = {reuse};
}};\n"""


_GATHER = """struct config{index} {{
    static const unsigned n_in = {n_in};
    static const unsigned n_source = {n_source};
    typedef {source_t.name} source_t;
}};\n"""

_WINDOW_MAX = (
    "struct config{index} {{\n"
    + "".join(f"    static const unsigned {name} = {{{name}}};\n" for name in _WINDOW)
    + "    static double lowest() {{ return {lowest}; }}\n}};\n"
)


class _Config(LayerConfigTemplate):  # type: ignore[misc]
    layer: type[Layer]
    text: str

    def __init__(self) -> None:
        super().__init__(self.layer)
        self.template = self.text

    def format(self, node: Any) -> str:
        params = self._default_config_params(node)
        params["n_in"] = node.get_input_variable().size()
        lanes = params["n_in"] if params["iotype"] == "io_parallel" else node.get_input_variable().shape[-1]
        params["multipliers"] = -(-lanes // int(params["reuse"] or 1))
        for name in ("scale", "table", "source"):
            if name in node.weights:
                params[f"n_{name}"] = node.weights[name].data.size
        for name in ("lowest", "highest"):
            if name in node.attributes:
                params[name] = repr(float(node.attributes[name]))
        return str(self.template.format(**params))


class RequantizeConfig(_Config):
    layer, text = Requantize, _REQUANTIZE


class LookupConfig(_Config):
    layer, text = Lookup, _LOOKUP


class GlobalSumConfig(_Config):
    layer, text = GlobalSum, _GLOBAL_SUM


class GatherConfig(_Config):
    layer, text = Gather, _GATHER


class WindowMaxConfig(_Config):
    layer, text = WindowMax, _WINDOW_MAX


class _Call(FunctionCallTemplate):  # type: ignore[misc]
    layer: type[Layer]
    function: str
    weights: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__(self.layer, include_header=["nnet_utils/nnet_gatewright.h"])

    def format(self, node: Any) -> str:
        params = self._default_function_params(node)
        arguments = ", ".join([params["input"], params["output"], *(node.weights[name].name for name in self.weights)])
        return f"nnet::{self.function}<{params['input_t']}, {params['output_t']}, {params['config']}>({arguments});"


class RequantizeCall(_Call):
    layer, function, weights = Requantize, "requantize", ("scale", "bias")


class LookupCall(_Call):
    layer, function, weights = Lookup, "lookup", ("table",)


class GlobalSumCall(_Call):
    layer, function = GlobalSum, "global_sum"


class GatherCall(_Call):
    layer, function, weights = Gather, "gather", ("source",)


class WindowMaxCall(_Call):
    layer, function = WindowMax, "window_max"


class _Task(TaskSequenceTemplate):  # type: ignore[misc]
    """oneAPI, streamed: the layer as a task of its own between two pipes."""

    def __init__(self, call: type[_Call]) -> None:
        super().__init__(call.layer)
        self.function = call.function

    def format(self, node: Any) -> str:
        params = self._default_function_params(node)
        pipes = f"{params['input_pipe']}, {params['output_pipe']}"
        return f"task_sequence<nnet::{self.function}_stream<{pipes}, {params['config']}>> {params['name']};"


class _Start(StreamFunctionCallTemplate):  # type: ignore[misc]
    """oneAPI, streamed: the call that starts the task."""

    def __init__(self, call: type[_Call]) -> None:
        super().__init__(call.layer)
        self.weights = call.weights

    def format(self, node: Any) -> str:
        return f"{node.name}.async({', '.join(node.weights[name].name for name in self.weights)});"


_LAYERS = (Requantize, Lookup, GlobalSum, Gather, WindowMax)
_CONFIGS = (RequantizeConfig, LookupConfig, GlobalSumConfig, GatherConfig, WindowMaxConfig)
_CALLS = (RequantizeCall, LookupCall, GlobalSumCall, GatherCall, WindowMaxCall)


def register(backend_name: str) -> None:
    """Make the layers known to hls4ml's backend; once per process."""
    backend = get_backend(backend_name)
    # VivadoAccelerator runs Vivado's own passes, which apply the templates that Vivado knows.
    writer = get_backend("Vivado") if backend_name == "VivadoAccelerator" else backend
    for layer in _LAYERS:
        register_layer(layer.__name__, layer)
    for template in (*_CONFIGS, *_CALLS):
        writer.register_template(template)
    if backend_name == "oneAPI":
        for call in _CALLS:
            for kind in (_Task, _Start):
                backend.register_template(partial(kind, call))
    backend.register_source(_TEMPLATES / _HEADERS[backend_name])
