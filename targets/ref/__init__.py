"""``ref``: the definition itself, frontend/reference.py, as a target. Exact, no compiler, no speed promised.

In: a canonical Model. Out: an artifact with the model, and an executor that takes any number of samples. Read: ``target.py``.
"""
