"""From any framework to a canonical ONNX ``Model``, from any file to a ``Dataset``, and the definition of what a model computes.

Read in this order: ``load.py`` (dispatch), ``upgrade.py`` and ``canonicalize.py`` (what a Model may rely on), ``data.py``,
``integer.py`` and ``reference.py`` (the meaning of a quantized graph, bit for bit), ``batch.py`` (many samples at once).

Importers are a file each (``keras_import.py``, ``jax_import.py``, …) and end in ``importing.py``, which compares with the source. What a
file says in operators of its own dialect becomes ONNX's in ``contrib.py`` and ``fused.py`` (ONNX Runtime's, quantized and fused) and in
``classical.py``, ``machines.py`` and ``encoders.py`` (ai.onnx.ml); what few targets know becomes what all do in ``lowered.py`` and
``written.py``.
"""

from . import deferred

deferred.install()
