"""What the fuzz tests put in the place of arguments that are right."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from fuzz_targets import D, K, M, N, y
from torch import Tensor, nn

import fastmmd
from fastmmd import priors

#: Each made anew: a function may change what it gets.
JUNK: dict[str, Callable[[], Any]] = {
    repr(value)[:30]: (lambda value=value: value)
    for value in (
        "abc", "", "gaussian", "12", b"1", None, True, False, 0, 1, 2, 7, -1, 2**31, 2**63 - 1, 2**63, 2**200, 10**400,
        -(2**70), 0.5, -1.5, 1e-320, 1e-30, 1e30, 1e308, math.nan, math.inf, -math.inf, 1j, (), (1.0,), (1.0, -1.0),
        (1.0, "a"), (None,), ((1.0,), (2.0,)), (2**200, 1.0), (math.nan, 1.0), (1e300, 1e-300), {}, {"x": 1.0},
        {1.0, 2.0}, range(2), Ellipsis, NotImplemented, float, "long" * 1000, Decimal(1), Fraction(1, 2), slice(1),
        np.float32(1.5), np.int64(2), np.bool_(True), np.str_("gaussian"), torch.float32, torch.float16, torch.int32,
        torch.device("cpu"), "cpu", "meta", "cuda:99",
    )
}  # fmt: skip
JUNK |= {
    "lambda": lambda: lambda: None,
    "object": object,
    "generator": lambda: (float(i) for i in range(2)),
    "list of many": lambda: [1.0] * 10_000,
    "nested lists": lambda: [[1.0] * D] * N,
    "numpy 0-d": lambda: np.array(1.0),
    "numpy [2]": lambda: np.array([1.0, 2.0]),
    "numpy [N, D]": lambda: np.ones((N, D), np.float32),
    "numpy of objects": lambda: np.array([None, 1.0], dtype=object),
    "numpy of strings": lambda: np.array(["a", "b"]),
    "torch.Generator": torch.Generator,
    "module": lambda: nn.Linear(2, 2),
    "prior": lambda: priors.Gaussian(D),
    "another prior": lambda: priors.SwissRoll(),
    "features": lambda: fastmmd.FourierFeatures(2, 3),
    "FixedSample": lambda: fastmmd.FixedSample(y()),
    "sparse": lambda: torch.eye(N)[:, :D].to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2, D), torch.ones(3, D)]),
    "meta [N, D]": lambda: torch.ones(N, D, device="meta"),
    "meta 0-d": lambda: torch.ones((), device="meta"),
    "meta int": lambda: torch.ones((), device="meta", dtype=torch.int64),
    "Parameter": lambda: nn.Parameter(torch.ones(N, D)),
    "Parameter 0-d": lambda: nn.Parameter(torch.ones(())),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(N, D), 0.1, 0, torch.qint8),
    "-1 labels": lambda: torch.full((N,), -1),
    "wrong labels": lambda: torch.full((N,), 2**40),
    "strange strides": lambda: torch.as_strided(torch.ones(40), (N, D), (1, 2)),
}
DTYPES = [
    value
    for name, value in vars(torch).items()
    if isinstance(value, torch.dtype) and not name.startswith(("q", "bits"))
]
SHAPES = ((), (0,), (1,), (2,), (N,), (2 * K,), (0, 0), (0, D), (N, 0), (1, D), (N, 1), (N, D), (1, 1, D), (2, N, D))
SHAPES += ((0, N, D), (1, 2, 1, N, D))
VALUES = {"nan": math.nan, "inf": math.inf, "1e30": 1e30, "1e-40": 1e-40, "0": 0.0, "-1": -1.0}


def _tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.ones(shape).to(dtype)


def _supported(dtype: torch.dtype) -> bool:
    try:
        _tensor((2,), dtype)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


JUNK |= {f"{list(shape)}": (lambda shape=shape: torch.ones(shape)) for shape in SHAPES}
JUNK |= {
    f"{dtype} {list(shape)}": (lambda dtype=dtype, shape=shape: _tensor(shape, dtype))
    for dtype in dict.fromkeys(DTYPES)
    if dtype != torch.float32 and _supported(dtype)
    for shape in ((N, D), (N,), ())
}
JUNK |= {
    f"{name} {list(shape)}": (lambda value=value, shape=shape: torch.full(shape, value))
    for name, value in VALUES.items()
    for shape in ((N, D), (N,), (M,), (K,), (2,), ())
}
