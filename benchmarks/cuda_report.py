"""What the CUDA kernels compile to, without a GPU: registers, spills, instructions per pair, predicted times.

    python benchmarks/cuda_report.py [--module build/.../_cuda.so] [--arch sm_90a ...] [--all] [--json FILE]

Read from the machine code in a module that was built for those architectures, by default the installed one. Executed
instructions are those of the loop that walks over pairs, which TURNS knows by kernel; the prediction is a lower bound,
as that of triton_report.py: the busiest pipe of an H200 at full rate, where nothing waits for memory or for another
warp.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from machine_code import CLOCK, MULTIPROCESSORS, PIPES, SHOWN, STEP, Branch, Code, Loop, amount, disassemble, scan

EXP2 = r"MUFU\.EX2"
TYPES = {"f": "float", "d": "double", "i": "int", "b": "bool"}


@dataclass(frozen=True)
class Turn:
    """A kernel's loop over pairs: of those without loops in them the one with the fewest multiply-adds."""

    pairs: Callable[..., int]  # of a thread at a time, by template arguments
    fused: Callable[..., int]  # multiply-adds of a pair; tells how often the compiler has unrolled the loop
    has: tuple[str, ...]  # instructions in it
    rare: str = "$"  # what is in the parts that are mostly passed over, and have no exponential


TURNS = {
    # distance, series of two times ten terms, a power of 2, sums of values and slopes; without moving on these every 16
    "small_kernel": Turn(
        lambda dim, gradient: {8: (4, 2), 16: (2, 1)}[8 if dim <= 8 else 16][gradient],
        lambda dim, gradient: 2 * dim + 23 if gradient else dim + 12,
        ("LDS", EXP2),
    ),
    # projection, sine and cosine of four and five terms, sums of both; the first product is none
    "few_sum_kernel": Turn(lambda dtype, dim, held: held, lambda dtype, dim, held: dim + 10, ("LDS", "FMUL")),
    # projection, cosine or its derivative, sums
    "few_function_kernel": Turn(
        lambda dtype, dim, held, gradient: held,
        lambda dtype, dim, held, gradient: 2 * dim + 4 if gradient else dim + 6,
        ("LDS", "FMUL"),
    ),
    # of a sigma; every fourth pair has a polynomial; further sigmas as powers of this one are rare
    "update_kernel": Turn(lambda dtype, source: 32, lambda dtype, source: 2, (EXP2,), "FMUL"),
}


@dataclass(frozen=True)
class Case:
    """An operation: the kernels that walk over its pairs, with how many each does; "products" are those of cuBLAS, one
    multiply-add each."""

    title: str
    kernels: tuple[tuple[str, float], ...]


CASES = {
    "mmd2-8192": Case(
        "mmd2 forward+backward, N=M=8192, D=6",
        (("small_kernel<6, 1>", 2 * 8192.0**2), ("small_kernel<6, 0>", 8192.0**2 / 2)),
    ),
    "mmd2-65536": Case(
        "mmd2 forward+backward, N=M=65,536, D=6",
        (("small_kernel<6, 1>", 2 * 65536.0**2), ("small_kernel<6, 0>", 65536.0**2 / 2)),
    ),
    "mmd2-value": Case("mmd2 without gradients, N=M=8192, D=6", (("small_kernel<6, 0>", 2 * 8192.0**2),)),
    "fourier": Case("fourier_mean forward, N=65,536, count=4096, D=6", (("few_sum_kernel<float, 6, 4>", 2.0**28),)),
    "fourier-backward": Case(
        "fourier_mean backward, N=65,536, count=4096, D=6", (("few_function_kernel<float, 6, 4, 1>", 2.0**28),)
    ),
    "parzen": Case(
        "parzen_log_likelihood, 10,000 x 10,000, D=784, ten sigmas (a pair and sigma; without distances)",
        (("products", 784e8), ("update_kernel<float, Products<float>>", 10e8)),
    ),
}


def name_of(mangled: str) -> tuple[str, list[Any]]:
    """A kernel's name and its template arguments: types by name, numbers and flags as integers."""
    name, arguments, _ = _nested(mangled, len("_Z"))
    return name, arguments


def _nested(text: str, at: int) -> tuple[str, list[Any], int]:
    """N [namespace ...] name [I argument ... E] E: the name, its arguments, and where it ends."""
    name, arguments, at = "", [], at + 1
    while text[at] != "E":
        if substitution := re.compile(r"S\w?_").match(text, at):  # a namespace named before
            at = substitution.end()
        elif text[at] == "I":
            arguments, at = _arguments(text, at + 1)
        else:
            length = re.compile(r"\d+").match(text, at)
            assert length is not None, f"a name of another kind: {text} at {at}"
            at = length.end() + int(length[0])
            name = text[length.end() : at]
    return name, arguments, at + 1


def _arguments(text: str, at: int) -> tuple[list[Any], int]:
    arguments: list[Any] = []
    while text[at] != "E":
        if text[at] == "N":
            name, inner, at = _nested(text, at)
            arguments.append(_written(name, inner))
        elif text[at] == "L":
            literal = re.compile(r"(?:[a-z]|N\w+?E)(n?)(\d+)E").match(text, at + 1)
            assert literal is not None, f"a number of another kind: {text} at {at}"
            arguments.append(int(literal[2]) * (-1 if literal[1] else 1))
            at = literal.end()
        else:
            arguments.append(TYPES[text[at]])
            at += 1
    return arguments, at + 1


def _written(name: str, arguments: Sequence[Any]) -> str:
    return f"{name}<{', '.join(map(str, arguments))}>" if arguments else name


def architectures(path: Path) -> list[str]:
    """For which a module has machine code."""
    return list(dict.fromkeys(re.findall(r"\.(sm_\w+)\.cubin", disassemble(path, "-lelf"))))


@cache
def read_module(path: Path, architecture: str) -> list[Code]:
    """Every kernel of a module for one architecture, such as "sm_90a"."""
    usage = dict(
        re.findall(
            r"Function (\w+):\s+(REG:\d+ STACK:\d+ SHARED:\d+)", disassemble(path, "-res-usage", "-arch", architecture)
        )
    )
    codes = []
    for listing in disassemble(path, "-sass", "-arch", architecture).split("Function : ")[1:]:
        mangled = listing.split(None, 1)[0]
        name, arguments = name_of(mangled)
        registers, _, shared = map(int, re.findall(r":(\d+)", usage[mangled]))
        instructions, branches, _ = scan(listing)
        spills = sum(bool(re.match(r"LDL|STL", mnemonic)) for _, mnemonic in instructions)
        code = Code(_written(name, arguments), (), {}, architecture, 1, registers, shared, spills, instructions)
        if (turn := TURNS.get(name)) and arguments[0] != "double":
            _find_loop(code, turn, arguments, branches)
        codes.append(code)
    return codes


def _find_loop(code: Code, turn: Turn, arguments: Sequence[Any], branches: Sequence[Branch]) -> None:
    def number(part: Loop, pattern: str) -> int:
        return sum(bool(re.match(pattern, name)) for at, name in code.instructions if part.first <= at <= part.last)

    loops = [Loop(goal, at) for at, goal, _ in branches if goal < at]
    inner = [
        loop
        for loop in loops
        if all(number(loop, pattern) for pattern in turn.has)
        and not any(other != loop and loop.first <= other.first and other.last <= loop.last for other in loops)
    ]
    if not inner:  # few pairs at a time may have none
        return
    code.loops = [min(inner, key=lambda loop: number(loop, "FFMA"))]
    hot, pairs, fused = code.loops[0], turn.pairs(*arguments), turn.fused(*arguments)
    multiply_adds = number(hot, "FFMA") + number(hot, "FFMA2")
    pairs *= 2 ** max(0, round(math.log2(max(1, multiply_adds) / (pairs * fused))))
    code.arguments["BLOCK_I"] = 32 * pairs  # of a warp
    parts = [
        Loop(at + STEP, goal - STEP) for at, goal, conditional in branches if conditional and hot.first < at < goal
    ]
    code.rare = [part for part in parts if part.last <= hot.last and number(part, turn.rare) and not number(part, EXP2)]


def seconds(case: Case, codes: dict[str, Code]) -> dict[str, float]:
    """On an H200, by the pipe that takes them."""
    of = {pipe: 0.0 for pipe in PIPES}
    for name, pairs in case.kernels:
        if name == "products":
            of["float32"] += pairs / (PIPES["float32"][0] * MULTIPROCESSORS * CLOCK)
            of["issue"] += pairs / (PIPES["issue"][0] * MULTIPROCESSORS * CLOCK)
            continue
        arguments = codes[name].arguments | {"n": pairs, "m": 1}
        for pipe, value in replace(codes[name], arguments=arguments).seconds().items():
            of[pipe] += value
    return of


def markdown(codes: Sequence[Code], everything: bool) -> str:
    """Two tables: the kernels, and what an H200 needs at least for the operations."""
    head = ["kernel", "target", "registers", "shared, B", "spills", "instructions", "per pair", *SHOWN]
    used = {name for case in CASES.values() for name, _ in case.kernels}
    rows = []
    for code in codes:
        if not everything and code.kernel not in used:
            continue
        counts = code.per_pair() if code.loops else None
        cells = [code.kernel, code.target, code.registers, code.shared, code.spills, len(code.instructions)]
        patterns = [r".", *SHOWN.values()]
        rows.append([*map(str, cells), *(f"{amount(counts, p):.3g}" if counts else "" for p in patterns)])
    parts = [table(head, rows)]
    rows = []
    by_name = {code.kernel: code for code in codes if code.target in ("sm_90", "sm_90a")}
    for case in CASES.values():
        if {name for name, _ in case.kernels} - {"products"} <= by_name.keys():
            pipes = {pipe: 1e3 * value for pipe, value in seconds(case, by_name).items()}
            slowest = max(pipes, key=lambda pipe: pipes[pipe])
            rows.append([case.title, f"{pipes[slowest]:.3g}", slowest, *(f"{pipes[pipe]:.3g}" for pipe in PIPES)])
    if rows:
        parts.append("Milliseconds on an H200 at least, by pipe:")
        parts.append(table(["operation", "predicted", "by", *PIPES], rows))
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", type=Path, help="by default fastmmd._cuda")
    parser.add_argument("--arch", nargs="+", help="by default all that it was built for")
    parser.add_argument("--all", action="store_true", help="every kernel, not only those of the operations below")
    parser.add_argument("--json", type=Path, help="write what was read here as well")
    options = parser.parse_args()
    if options.module is None:
        spec = importlib.util.find_spec("fastmmd._cuda")
        if spec is None or spec.origin is None:
            sys.exit("fastmmd._cuda is not installed: FASTMMD_CUDA=on pip install -e . builds it, or pass --module")
        options.module = Path(spec.origin)
    names = options.arch or architectures(options.module)
    codes = [code for architecture in names for code in read_module(options.module, architecture)]
    print(markdown(codes, options.all))
    if options.json:
        options.json.write_text(json.dumps([asdict(code) for code in codes]))


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
