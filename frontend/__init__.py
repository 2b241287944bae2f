"""From any framework to a canonical ONNX ``Model``, from any file to a ``Dataset``, and the definition of what a model computes.

Read in this order: ``load.py`` (dispatch), ``upgrade.py`` and ``canonicalize.py`` (what a Model may rely on), ``data.py``,
``integer.py`` and ``reference.py`` (the meaning of a quantized graph, bit for bit), ``batch.py`` (many samples at once).
"""

from . import deferred

deferred.install()
