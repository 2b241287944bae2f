"""SymPy waits until somebody calculates with dimensions, and then is what it always was."""

from __future__ import annotations

import subprocess

from gatewright.interpreter import python

USED = """
import sys, gatewright
from onnx import parser
text = '<ir_version: 8, opset_import: ["" : 13]> g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }'
gatewright.load(parser.parse_model(text))
assert "onnx_ir" in sys.modules and "sympy.core" not in sys.modules
import onnx_ir
assert str(2 * onnx_ir.SymbolicDim("n") + 1) == "2*n + 1"
assert "sympy.core" in sys.modules
"""
ASKED_FOR = "import gatewright.frontend.load, sys, sympy; assert str(sympy.Symbol('n') * 2) == '2*n'; import sympy.core.mul"
BEFORE = "import sympy, sys, gatewright.frontend.load; assert 'sympy.core' in sys.modules and sys.modules['sympy'].Integer(2) == 2"


def test_a_model_is_loaded_without_it() -> None:
    for code in (USED, ASKED_FOR, BEFORE):
        done = subprocess.run(python("-c", code), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
