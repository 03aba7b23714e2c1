"""Triton's interpreter patches triton.language at each call of a function, half of its time; here once per function.

That is private to Triton. Where it is not as expected nothing is patched: the tests are slower, and test the same.
"""

from __future__ import annotations

import functools
import importlib
import inspect


def patch_once() -> bool:
    """Whether this version of Triton is patched."""
    try:
        interpreter = importlib.import_module("triton.runtime.interpreter")
        patch = interpreter._patch_lang
        as_expected = list(inspect.signature(patch).parameters) == ["fn"]
    except (ImportError, AttributeError):
        return False
    if as_expected:
        interpreter._patch_lang = functools.cache(patch)
        if hasattr(interpreter, "_LangPatchScope"):  # later versions undo the patch after each call
            interpreter._LangPatchScope.restore = lambda self: None
    return as_expected
