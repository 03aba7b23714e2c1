"""What the Triton kernels compile to, without a GPU: registers, spills, instructions per pair, predicted times.

    python benchmarks/triton_report.py [--arch sm_90 ...] [--case mmd2-8192 ...] [--json FILE]

The operations run as on a GPU, on CPU tensors, up to their launches: these are compiled with the arguments, the block
sizes and the alignment that a GPU would get, and are not started. An autotuned kernel is compiled in every
configuration. Instructions are read from the machine code of the tile loop, inner loops as often as they run.

The prediction is a lower bound: the busiest pipe of an H200 at full rate, where nothing waits for memory or for another
warp.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from pkgutil import walk_packages
from typing import Any
from unittest.mock import patch

os.environ.pop("TRITON_INTERPRET", None)  # before the kernels are imported: interpreted ones compile to nothing

from settings import SIGMAS, SIX  # isort: skip  before torch

import torch
from machine_code import PIPES, SHOWN, Code, amount, read
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from fastmmd.backends.calls import (
    Features,
    FourierFrequencies,
    FourierFunction,
    FourierSum,
    Mmd2,
    Mmd2Inputs,
    Parzen,
    ParzenBackward,
    Sample,
)
from fastmmd.kernels import Kernel

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Case:
    """A call of the backend up to its launches."""

    title: str
    run: Callable[[], Any]


def cases(offset: int = 0) -> dict[str, Case]:
    """The sizes of the record. offset: elements between the tensors' start and an aligned address."""

    def points(*shape: int) -> torch.Tensor:
        return torch.zeros(math.prod(shape) + offset)[offset:].view(shape)

    def mmd2(n: int, dim: int, gradient: bool = True, weighted: bool = False) -> None:
        from fastmmd.backends.triton import mmd

        kernel = Kernel("gaussian", SIX, (1.0,) * 6)
        weights = [points(1, n) + 1 if weighted else None for _ in range(2)]
        needs = (gradient, False, weighted, False, weighted, weighted)
        x, y = (Sample(points(1, n, dim), weight) for weight in weights)
        mmd.mmd2(Mmd2(x, y, kernel, False, Mmd2Inputs(*needs)))

    def mmd2_of_classes(n: int, dim: int, classes: int) -> None:
        from fastmmd.backends.triton import mmd

        kernel = Kernel("gaussian", SIX, (1.0,) * 6)
        offsets = [torch.arange(classes + 1) * (n // classes) for _ in range(2)]
        needs = (True, False, False, False, False, False)
        x, y = (Sample(points(1, n, dim), None, offset) for offset in offsets)
        mmd.mmd2(Mmd2(x, y, kernel, False, Mmd2Inputs(*needs)))

    def fourier(gradient: bool | None) -> None:
        from fastmmd.backends.triton import fourier

        n, count = 65536, 4096
        features = Features(torch.tensor([1, 0]), count, (1.0,), (1.0,))
        if gradient is None:
            fourier.fourier_frequencies(FourierFrequencies(features, 6, torch.float32))
        elif gradient:
            fourier.fourier_function(FourierFunction(points(1, n, 6), points(1, 2 * count), features, False, True))
        else:
            fourier.fourier_sum(FourierSum(points(1, n, 6), points(1, n), features))

    def parzen(gradient: bool) -> None:
        from fastmmd.backends.triton import parzen

        n = 2048 if gradient else 10_000
        state = points(n), torch.ones(len(SIGMAS), n, dtype=torch.float64)
        call = Parzen(points(n, 784), points(n, 784), SIGMAS, *state)
        if gradient:
            grad = points(len(SIGMAS), n)
            parzen.parzen_backward(ParzenBackward(call, grad, True, True))
        else:
            parzen.parzen_update(call)

    return {
        "mmd2-1000": Case("mmd2 forward+backward, N=M=1000, D=6", lambda: mmd2(1000, 6)),
        "mmd2-8192": Case("mmd2 forward+backward, N=M=8192, D=6", lambda: mmd2(8192, 6)),
        "mmd2-65536": Case("mmd2 forward+backward, N=M=65,536, D=6", lambda: mmd2(65536, 6)),
        "mmd2-wide": Case("mmd2 forward+backward, N=M=4096, D=784", lambda: mmd2(4096, 784)),
        "mmd2-value": Case("mmd2 without gradients, N=M=8192, D=6", lambda: mmd2(8192, 6, False)),
        "mmd2-weights": Case("mmd2 with all gradients, weighted, N=M=8192, D=6", lambda: mmd2(8192, 6, True, True)),
        "mmd2-classes": Case("mmd2 forward+backward, ten classes, N=M=8192, D=6", lambda: mmd2_of_classes(8192, 6, 10)),
        "mmd2-classes-wide": Case(
            "mmd2 forward+backward, ten classes, N=M=1024, D=64", lambda: mmd2_of_classes(1024, 64, 10)
        ),
        "frequencies": Case("fourier_frequencies, count=4096, D=6", lambda: fourier(None)),
        "fourier": Case("fourier_mean forward, N=65,536, count=4096, D=6", lambda: fourier(False)),
        "fourier-backward": Case("fourier_mean backward, N=65,536, count=4096, D=6", lambda: fourier(True)),
        "parzen": Case("parzen_log_likelihood, 10,000 x 10,000, D=784, ten sigmas", lambda: parzen(False)),
        "parzen-backward": Case("parzen_log_likelihood backward, 2048 x 2048, D=784, ten sigmas", lambda: parzen(True)),
    }


def launches(
    run: Callable[[], Any], architecture: str, configurations: int | None = None, **options: Any
) -> list[Code]:
    """What run() launches, in order, compiled for the architecture and read.

    configurations: at most so many of an autotuned kernel; options: further ones of the compiler.
    """
    with _recording(architecture, configurations, options) as record:
        run()
    codes = []
    for number, configurations in enumerate(record):
        for kernel, *launch in configurations:
            codes.append(read(kernel.__name__, *launch))
            codes[-1].launch = number
    return codes


@contextmanager
def _recording(
    architecture: str, configurations: int | None, more: dict[str, Any]
) -> Iterator[list[list[tuple[Any, ...]]]]:
    """Launches, each in all its configurations, are compiled and recorded in place of started: kernel, grid, arguments,
    code. On a machine that has any GPU or none."""
    record: list[list[tuple[Any, ...]]] = []
    launch = JITFunction.run
    tuning = False

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        del warmup
        kernel = launch(self, *args, grid=grid, warmup=True, **options | more)
        names = signature(self.fn)
        bound = names.bind(*args, **{key: value for key, value in options.items() if key in names.parameters})
        arguments = dict(bound.arguments)
        for name in ("FLUSH", "ROW_TILES"):
            if name in self.fn.__code__.co_names:
                arguments["FLUSH"] = self.fn.__globals__[name].value
        if not tuning:
            record.append([])
        record[-1].append((self.fn, grid(arguments) if callable(grid) else grid, arguments, kernel))
        return kernel

    def every_configuration(self: Any, *args: Any, **options: Any) -> None:
        nonlocal tuning
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        record.append([])
        tuning = True
        for config in self.prune_configs(options)[:configurations]:
            self.fn.run(*args, **options | config.all_kwargs())
        tuning = False

    with (
        _target(architecture),
        patch.object(JITFunction, "run", compiled),
        patch.object(Autotuner, "run", every_configuration),
    ):
        yield record


@contextmanager
def _target(architecture: str) -> Iterator[None]:
    """Kernels are those of an architecture, and remember none of another before and after."""
    before = vars(driver).get("_active", vars(driver).get("active"))  # newer and older versions; None: not asked yet
    driver.set_active(_NoDevice(architecture))
    for kernel in _kernels():
        kernel.device_caches.clear()
    try:
        yield
    finally:
        driver.set_active(before)
        for kernel in _kernels():
            kernel.device_caches.clear()


def variants(run: Callable[[], Any]) -> list[str]:
    """Of the kernels that run() launches, each as often as the compiler would run for it: half a second or more, in
    which the caller waits."""
    seen: dict[Any, str] = {}

    def stop(**compile: Any) -> bool:
        seen.setdefault(compile["key"], compile["fn"].name.rpartition(".")[2])
        return True  # that is compiled already

    with _target("sm_90"), patch.object(knobs.runtime, "jit_cache_hook", stop):
        run()
    return sorted(seen.values())


def random_sizes(operation: str, calls: int = 40) -> None:
    """An operation of samples with as many points as a last batch, or a filter, leaves of 4096."""
    from fastmmd.backends.triton import fourier, mmd, parzen

    sizes = random.Random(0)
    for _ in range(calls):
        n, m = (sizes.choice([1, 16, sizes.randint(1, 4096), 16 * sizes.randint(1, 256)]) for _ in range(2))
        x, y = torch.zeros(1, n, 6), torch.zeros(1, m, 6)
        offsets = [torch.tensor([0, count // 3, count // 3, count]) for count in (n, m)]
        if operation != "mmd2 of classes":
            offsets = [None, None]
        if operation.startswith("mmd2"):
            needs = Mmd2Inputs(True, False, False, False, False, False)
            samples = [Sample(points, None, offset) for points, offset in zip((x, y), offsets, strict=True)]
            mmd.mmd2(Mmd2(*samples, Kernel("gaussian", SIX, (1.0,) * 6), False, needs))
        elif operation.startswith("parzen"):
            x, y = torch.zeros(n, 784), torch.zeros(m, 784)
            state = torch.zeros(n), torch.ones(2, n, dtype=torch.float64)
            call = Parzen(x, y, (0.5, 1.0), *state)
            if operation == "parzen":
                parzen.parzen_update(call)
            else:
                parzen.parzen_backward(ParzenBackward(call, torch.zeros(2, n), True, True))
        else:
            features = Features(torch.zeros(2, dtype=torch.int64), 4096, (1.0,), (1.0,))
            fourier.fourier_sum(FourierSum(x, torch.zeros(1, n), features))
            fourier.fourier_function(FourierFunction(x, torch.zeros(1, 8192), features, False, True))


class _NoDevice:
    """As much of a driver as compiling takes."""

    def __init__(self, architecture: str) -> None:
        nvidia = architecture.startswith("sm_")
        number: Any = int(architecture.removeprefix("sm_")) if nvidia else architecture
        self.target = GPUTarget("cuda" if nvidia else "hip", number, 32 if nvidia else 64)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _kernels() -> list[Any]:
    from fastmmd.backends import triton as package

    modules = [import_module(module.name) for module in walk_packages(package.__path__, f"{package.__name__}.")]
    values = {id(value): value for module in modules for value in vars(module).values()}.values()
    return [value for value in values if isinstance(value, JITFunction)]


def markdown(compiled: dict[str, list[Code]], titles: dict[str, str]) -> str:
    """Two tables: the kernels, and what an H200 needs at least for the operations."""
    shown = list(SHOWN)
    head = ["case", "kernel", "target", "tile", "warps", "registers", "shared, B", "spills", "all per pair", *shown]
    rows = []
    for case, codes in compiled.items():
        for code in codes:
            counts = code.per_pair() if code.target.startswith("sm_") else Counter()
            values = [amount(counts, r"."), *(amount(counts, pattern) for pattern in SHOWN.values())]
            sizes = [str(code.arguments[key]) for key in code.arguments if re.fullmatch("BLOCK_.", key)]
            cells = [case, code.kernel, code.target, " x ".join(sizes), code.warps, code.registers, code.shared]
            numbers = [f"{value:.3g}" if counts else "" for value in values]
            rows.append([*map(str, cells), str(code.spills), *numbers])
    parts = [_table(head, list(dict.fromkeys(map(tuple, rows))))]
    rows = []
    for case, codes in compiled.items():
        codes = [code for code in codes if code.target == "sm_90"]
        if codes:
            pipes = {pipe: 1e3 * sum(code.seconds()[pipe] for code in _fastest(codes)) for pipe in PIPES}
            slowest = max(pipes, key=lambda pipe: pipes[pipe])
            rows.append([titles[case], f"{pipes[slowest]:.3g}", slowest, *(f"{pipes[pipe]:.3g}" for pipe in PIPES)])
    if rows:
        parts.append("Milliseconds on an H200 at least, by pipe:")
        parts.append(_table(["operation", "predicted", "by", *PIPES], rows))
    return "\n\n".join(parts)


def _fastest(codes: Sequence[Code]) -> list[Code]:
    """Of the configurations of each launch the one that the prediction prefers."""
    best: dict[int, Code] = {}
    for code in codes:
        known = best.get(code.launch)
        if known is None or max(code.seconds().values()) < max(known.seconds().values()):
            best[code.launch] = code
    return list(best.values())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def kernels() -> list[str]:
    """The names of all that the backend can launch."""
    return sorted(kernel.__name__ for kernel in _kernels() if kernel.__name__.endswith("_kernel"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    titles = {name: case.title for name, case in cases().items()}
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--case", nargs="+", default=list(titles), choices=list(titles))
    parser.add_argument("--json", type=Path, help="write what was read here as well")
    parser.add_argument("--offset", type=int, default=0, help="elements from an aligned address to every tensor")
    parser.add_argument("--maxnreg", type=int, help="registers of a thread at most")
    parser.add_argument("--configurations", type=int, help="of an autotuned kernel at most; default: all")
    options = parser.parse_args()
    limits = {} if options.maxnreg is None else {"maxnreg": options.maxnreg}
    compiled: dict[str, list[Code]] = {name: [] for name in options.case}
    failed = 0
    for architecture in options.arch:
        for name in options.case:
            try:
                compiled[name] += launches(
                    cases(options.offset)[name].run, architecture, options.configurations, **limits
                )
            except Exception as error:  # of any stage of the compiler; the others shall be shown
                failed += 1
                print(f"{name} for {architecture}: {type(error).__name__}: {error}", file=sys.stderr)
    print(markdown(compiled, titles))
    if options.json:
        codes = {name: [asdict(code) for code in codes] for name, codes in compiled.items()}
        options.json.write_text(json.dumps({"kernels": kernels(), "cases": codes}))
    sys.exit(failed > 0)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
