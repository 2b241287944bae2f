"""``ort``: ONNX Runtime, the engine that users compare with. An adapter: it does not keep the integer contract.

It goes through float32; ``ort{exact=true}`` switches its graph optimizations off, so that no kernel saturates on the way.
In: a canonical Model. Out: an artifact with the model as ONNX Runtime takes it. Read: ``target.py``.
"""
