"""What the CUDA kernels compile to, without a GPU: registers, spills, instructions for each pair, predicted times.

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
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from machine_code import PIPES, SHOWN, Code, Loop, amount, disassemble, scan

ARGUMENT = re.compile(r"([a-z])|L(?:[a-z]|N\w+?E)(n?\d+)E")  # of a template: a type, or a number of some type
TYPES = {"f": "float", "d": "double", "i": "int", "b": "bool"}


@dataclass(frozen=True)
class Turn:
    """A turn of the loop over pairs: how many a thread does in it, by the kernel's template arguments, and an
    instruction that no other loop of the kernel has."""

    pairs: Callable[..., int]
    has: str = "FFMA"
    trips: dict[str, float] | None = None


def small_rows(dim: int, gradient: int) -> int:
    """As in csrc/cuda/mmd_memory.cuh."""
    return (2 if gradient else 4) if dim <= 8 else (1 if gradient else 2)


TURNS: dict[str, Turn] = {
    "small_kernel": Turn(lambda dim, gradient: 2 * small_rows(dim, gradient), r"LDS"),
}


@dataclass(frozen=True)
class Case:
    """An operation: the kernels that walk over its pairs, with how many each does."""

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
}


def name_of(mangled: str) -> tuple[str, list[Any]]:
    """A kernel's name and its template arguments: types by name, numbers and flags as integers."""
    at, name = len("_ZN"), ""
    while length := re.compile(r"\d+").match(mangled, at):  # of every namespace, of the name
        name = mangled[length.end() : length.end() + int(length[0])]
        at = length.end() + int(length[0])
    arguments: list[Any] = []
    if mangled[at] == "I":
        at += 1
        while found := ARGUMENT.match(mangled, at):
            arguments.append(TYPES[found[1]] if found[1] else int(found[2].replace("n", "-")))
            at = found.end()
        assert mangled[at] == "E", f"template arguments of another kind: {mangled}"
    return name, arguments


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
        title = f"{name}<{', '.join(map(str, arguments))}>" if arguments else name
        code = Code(title, (), {}, architecture, 1, registers, shared, spills, instructions)
        if turn := TURNS.get(name):
            code.arguments["BLOCK_I"] = 32 * turn.pairs(*arguments)  # of a warp
            code.loops = [hot_loop(code, [(goal, at) for at, goal, _ in branches if goal < at], turn.has)]
        codes.append(code)
    return codes


def hot_loop(code: Code, loops: Sequence[tuple[int, int]], has: str) -> Loop:
    """Of the loops without a loop in them that have the instruction, the one with the most multiply-adds."""
    bodies = {}
    for first, last in loops:
        if any((first, last) != (a, b) and first <= a and b <= last for a, b in loops):
            continue
        names = [name for at, name in code.instructions if first <= at <= last]
        if any(re.match(has, name) for name in names):
            bodies[first, last] = sum(bool(re.match(r"[FD]FMA", name)) for name in names)
    assert bodies, f"{code.kernel}: no loop with {has}"
    return Loop(*max(bodies, key=lambda loop: bodies[loop]))


def seconds(case: Case, codes: dict[str, Code]) -> dict[str, float]:
    """On an H200, by the pipe that takes them."""
    of = {pipe: 0.0 for pipe in PIPES}
    for name, pairs in case.kernels:
        arguments = codes[name].arguments | {"n": pairs, "m": 1}
        for pipe, value in replace(codes[name], arguments=arguments).seconds().items():
            of[pipe] += value
    return of


def markdown(codes: Sequence[Code], everything: bool) -> str:
    """Two tables: the kernels, and what an H200 needs at least for the operations."""
    head = ["kernel", "target", "registers", "shared, B", "spills", "instructions", "for a pair", *SHOWN]
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
        if {name for name, _ in case.kernels} <= by_name.keys():
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
