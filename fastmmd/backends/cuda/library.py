"""The compiled module of CUDA kernels: loaded on first use, called on the current stream of a tensor's device."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

REINSTALL = (
    "put nvcc on the PATH and reinstall: FASTMMD_CUDA=on pip install --force-reinstall --no-deps . in a checkout, else "
    "FASTMMD_CUDA=on pip install --force-reinstall --no-deps --no-binary fastmmd fastmmd"
)


@cache
def load() -> Any:
    """The compiled module.

    Raises:
        ImportError: it is missing or cannot be loaded.
    """
    return importlib.import_module("fastmmd._cuda")


def unavailable(device_type: str) -> str | None:
    """Why the CUDA kernels cannot run and what to do; None where they can."""
    if torch.version.hip is not None:
        return 'this torch is for ROCm, where the Triton kernels run; use backend("auto") or backend("triton")'
    if importlib.util.find_spec("fastmmd._cuda") is None:
        return f"fastmmd was installed without its CUDA kernels; {REINSTALL}"
    try:
        why = load().unusable()
    except ImportError as error:
        return f"its CUDA kernels cannot be loaded ({error}); {REINSTALL}"
    return f"its CUDA kernels do not run here: {why}" if why else None


def launch(on_stream: Callable[[int], object], like: Tensor) -> None:
    """on_stream(the current stream of the device of `like`), which is the current one (`ops.dispatch.prepared`)."""
    # Not on the GPU: kernels that tests run on the CPU.
    on_stream(torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0)


def run(task: Any, like: Tensor) -> None:
    """A task of the compiled module that takes one launch and a workspace."""
    memory = workspace(like, task.workspace)
    launch(partial(task.run, memory.data_ptr()), like)


def workspace(like: Tensor, size: int) -> Tensor:
    """Memory between kernels, `size` bytes on the device of `like`.

    Whoever gets it next from torch's allocator uses it on the same stream, after the kernels that are launched now.
    """
    return torch.empty(size, dtype=torch.uint8, device=like.device)
