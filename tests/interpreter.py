"""Triton's interpreter, in the tests: faster, and with the quotients and powers of hardware.

It patches triton.language at each call of a function, half of its time; here once per function. It rounds every
operation correctly; a GPU's float32 quotients (div.full) and powers of 2 (ex2.approx) may be off by two units in the
last place, here always are, to the same side.

Both are private to Triton. Where it is not as expected nothing is patched: the tests are slower, or kinder.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np


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


def patch_precision() -> bool:
    """Whether this version of Triton is patched."""
    try:
        builder = importlib.import_module("triton.runtime.interpreter").InterpreterBuilder
        operations = {name: getattr(builder, name) for name in ("create_fdiv", "create_exp2")}
    except (ImportError, AttributeError):
        return False
    for name, operation in operations.items():
        setattr(builder, name, _two_units_off(operation))
    return True


def _two_units_off(operation: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(operation)
    def off(self: Any, *arguments: Any) -> Any:
        result = operation(self, *arguments)
        if result.data.dtype == np.float32:
            exact = ~np.isfinite(result.data) | (result.data == 0) | (result.data == 1)  # as there
            farther = (result.data.view(np.int32) + 2).view(np.float32)
            result.data = np.where(exact, result.data, farther)
        return result

    return off
