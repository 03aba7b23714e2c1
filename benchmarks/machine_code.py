"""What compiled kernels consist of: the machine code of their tile loops, instruction by instruction."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

MULTIPROCESSORS, CLOCK = 132, 1.98e9  # of an H200
# Lanes per multiprocessor and cycle of compute capability 9.0, and the instructions that take them. Conversions share
# the special-function unit; shuffles, shared and global memory share one pipe, which wide accesses hold for longer.
PIPES = {
    "issue": (128, r"."),
    "float32": (128, r"FFMA|FADD|FMUL|FSWZADD"),
    "integer": (
        64,
        r"FSEL|FSETP|FMNMX|FCHK|IADD|IMAD|IMNMX|ISETP|LOP3|LEA|SEL|SHF|PRMT|IABS|VIADD|VIMNMX|POPC|BMSK|SGXT",
    ),
    "special": (16, r"MUFU|F2I|I2F|F2F|FRND|I2I"),
    "float64": (64, r"DADD|DMUL|DFMA|DSETP|DMNMX"),
    "memory": (32, r"SHFL|LDS|STS|LDSM|STSM|LDG|STG|LDL|STL|LD\b|ST\b|ATOM|RED\b"),
    "matrix": (2048, r"HMMA|HGMMA"),  # multiply-adds of float16, not instructions
}
SHOWN = {
    "FFMA": r"FFMA",
    "FADD": r"FADD",
    "FMUL": r"FMUL",
    "MUFU": r"MUFU",
    "F2I, F2F": r"F2I|I2F|F2F|FRND",
    "double": r"D(ADD|MUL|FMA|SETP|MNMX)",
    "SHFL": r"SHFL",
    "shared": r"(LDS|STS|LDSM|STSM)",
    "global": r"(LDG|STG)",
    "matrix": r"(HMMA|HGMMA|DMMA|IMMA|UTC\w*MMA)\b",
}
MATRIX = re.compile(r"^(HMMA|HGMMA|DMMA|IMMA|QGMMA|UTC\w*MMA)\b")  # HFMA2.MMA moves a constant
PROGRAM = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
STEP = 16  # bytes of an instruction


@dataclass
class Loop:
    """Instructions from first to last, addresses; what runs `trips` times within one turn of the loop around it."""

    first: int
    last: int
    trips: float = 1.0
    scales: bool = False  # by powers of 2, as exponentials do


@dataclass
class Code:
    """A kernel's machine code."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # numbers and compile-time constants by name
    target: str
    warps: int
    registers: int
    shared: int
    spills: int  # loads from and stores to local memory (NVIDIA), spilled registers (AMD)
    instructions: list[tuple[int, str]] = field(default_factory=list)  # address, name with its modifiers
    loops: list[Loop] = field(default_factory=list)  # the tile loop first, then those in it
    launch: int = 0  # its number; configurations among which tuning chooses share one
    rare: list[Loop] = field(default_factory=list)  # parts that counts leave out: the slower side of an alternative

    @property
    def tile(self) -> int:
        """Pairs in a tile."""
        sizes = [self.arguments.get(f"BLOCK_{axis}") for axis in "IJK"]
        return math.prod(size for size in sizes if size)

    @property
    def pairs(self) -> int:
        """Pairs of one launch: rows times columns or features, times the batch; of classes of one size within each.

        A launch that goes over points alone counts those.
        """
        sizes = [self.arguments[name] for name in ("n", "m", "count") if name in self.arguments][:2]
        batch = self.arguments.get("members", 1)
        if self.arguments.get("CANCELING"):  # a launch that looks for pairs which hardly any data have
            return 0
        number = math.prod(sizes)
        if not self.arguments.get("RAGGED"):
            number *= batch
        elif len(sizes) == 2:  # the sizes are those of all classes together
            number //= self.arguments["members"]
        return number // 2 if self.arguments.get("HALF") else number

    def of(self, pattern: str | re.Pattern[str]) -> list[str]:
        """All instructions that begin with the pattern."""
        return [name for _, name in self.instructions if re.match(pattern, name)]

    def inner_loads(self) -> list[str]:
        """Loads from global memory in the loops over dimensions within the tile loop."""
        over_dims = [loop for loop in self.loops[1:] if not loop.scales and not amount(_body(self, loop), "MUFU.EX2")]
        return [
            name
            for at, name in self.instructions
            if re.match(r"LDG(?!DEPBAR)", name)
            and any(part.first <= at <= part.last for part in over_dims)
            and not any(part.first <= at <= part.last for part in self.rare)
        ]

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Code:
        """The inverse of dataclasses.asdict and JSON."""
        parts = {name: [Loop(**loop) for loop in values[name]] for name in ("loops", "rare")}
        return cls(**values | parts | {"instructions": [(at, name) for at, name in values["instructions"]]})

    def per_pair(self) -> Counter[str]:
        """Executed instructions of all threads per pair of the tile loop."""
        counts: Counter[str] = Counter()
        outer = self.loops[0] if self.loops else Loop(0, self.instructions[-1][0] if self.instructions else 0)
        for at, name in self.instructions:
            if outer.first <= at <= outer.last and not any(part.first <= at <= part.last for part in self.rare):
                times = math.prod(loop.trips for loop in self.loops[1:] if loop.first <= at <= loop.last)
                counts[name] += times * 32 * self.warps / (self.tile * self.arguments.get("FLUSH", 1))
        return counts

    def seconds(self) -> dict[str, float]:
        """Of a launch on an H200, by the pipe that takes them."""
        return {
            pipe: self.pairs * amount(counts, pattern) / (lanes * MULTIPROCESSORS * CLOCK)
            for pipe, (lanes, pattern) in PIPES.items()
            for counts in (_multiply_adds(self.per_pair()) if pipe == "matrix" else self.per_pair(),)
        }

    def spilled(self) -> float:
        """Loads from and stores to local memory, of all executed instructions: nearly none where they stand outside of
        the loops, which is how a compiler fits one more block on a multiprocessor."""
        if self.spills == 0 or not self.instructions:
            return float(self.spills > 0)
        counts = self.per_pair()
        return amount(counts, r"LDL|STL") / amount(counts, r".")

    def matrix_multiply_adds(self) -> float:
        """Of tensor cores per pair, before Blackwell; one in TF32 as two, which is the time that it takes."""
        return sum(_multiply_adds(self.per_pair()).values())


def amount(counts: Counter[str], pattern: str | re.Pattern[str]) -> float:
    """How many of the counted instructions begin with the pattern."""
    return sum(number for name, number in counts.items() if re.match(pattern, name))


def _multiply_adds(counts: Counter[str]) -> Counter[str]:
    """Those of tensor cores in place of instructions: a warp's (HMMA, 16 rows, 8 columns) or four warps' (HGMMA)."""
    result: Counter[str] = Counter()
    for name, number in counts.items():
        if shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)|HMMA\.168(8|16)\b", name):
            size = 16 * 8 * int(shape[4]) * 4 if shape[4] else math.prod(map(int, shape.groups()[:3]))
            result[name] += number * size / 128 * (2 if "TF32" in name else 1)
    return result


def read(name: str, grid: tuple[int, ...], arguments: dict[str, Any], compiled: Any) -> Code:
    """The code of a compiled kernel."""
    target, warps = compiled.metadata.target, compiled.metadata.num_warps
    numbers = {key: value for key, value in arguments.items() if isinstance(value, bool | int | float | str)}
    common = (name, tuple(grid), numbers)
    if target.backend != "cuda":
        return _amd(common, str(target.arch), warps, compiled.metadata.shared, compiled.asm["amdgcn"])
    listing = _listing(compiled.asm["cubin"])
    registers = int(re.findall(r"REG:(\d+)", listing)[-1])
    instructions, loops, alternatives = parse(listing)
    spills = sum(bool(re.match(r"LDL|STL", mnemonic)) for _, mnemonic in instructions)
    target = f"sm_{target.arch}"
    code = Code(*common, target, warps, registers, compiled.metadata.shared, spills, instructions, loops)
    count_trips(code, alternatives)
    return code


@cache
def _listing(cubin: bytes) -> str:
    """Resources and instructions of a kernel, which several launches may share."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return disassemble(file.name, "-res-usage", "-sass")


def disassemble(path: str | Path, *options: str) -> str:
    """What cuobjdump says of a cubin or of a library with kernels."""
    return subprocess.run([cuobjdump(), *options, path], check=True, capture_output=True, text=True).stdout


def cuobjdump() -> str:
    """Triton's, or that of a CUDA toolkit."""
    triton = importlib.util.find_spec("triton")
    places = [f"{where}/backends/nvidia/bin" for where in (triton and triton.submodule_search_locations) or ()]
    places += [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    path = shutil.which("cuobjdump", path=os.pathsep.join(places))
    if path is None:
        raise FileNotFoundError("cuobjdump: neither with Triton nor with a CUDA toolkit; pip install triton")
    return path


Branch = tuple[int, int, bool]  # address, goal, whether it depends on something


def scan(listing: str) -> tuple[list[tuple[int, str]], list[Branch], list[int]]:
    """Instructions and branches of a function in cuobjdump's listing, and where it scales by powers of 2."""
    instructions, branches, scaling = [], [], []
    for line in listing.splitlines():
        instruction = PROGRAM.match(line)
        if not instruction or instruction[3] == "NOP":
            continue
        at, name, operands = int(instruction[1], 16), instruction[3], instruction[4]
        instructions.append((at, name))
        if re.search(r"\b0x(17|800000)\b", operands):  # 23, where the exponent of a float32 begins
            scaling.append(at)
        goal = re.search(r"0x([0-9a-f]+)\s*$", operands.strip())
        if name.startswith("BRA") and goal:
            branches.append((at, int(goal[1], 16), bool(instruction[2]) or "P" in operands))
    return instructions, branches, scaling


def parse(listing: str) -> tuple[list[tuple[int, str]], list[Loop], list[tuple[Loop, ...]]]:
    """Instructions of cuobjdump's listing; the longest loop and those in it; both sides of every if with an else."""
    instructions, branches, scaling = scan(listing)
    # Two ways back to one place are one loop; a branch to itself fills the space behind the program.
    last = {goal: at for at, goal, _ in sorted(branches) if goal < at}
    loops = [Loop(*loop) for loop in sorted(last.items(), key=lambda loop: loop[0] - loop[1])]
    inner = [loop for loop in loops[1:] if loops[0].first < loop.first and loop.last < loops[0].last]
    leaps = {at: goal for at, goal, conditional in branches if goal > at and not conditional}
    alternatives = [
        (Loop(at + STEP, goal - STEP), Loop(goal, leaps[goal - STEP] - STEP))
        for at, goal, conditional in branches
        if conditional and goal > at and goal - STEP in leaps
    ]
    for part in [*loops, *(side for sides in alternatives for side in sides)]:
        part.scales = any(part.first <= at <= part.last for at in scaling)
    # The heads of a ladder, without an else: what is skipped where a rung is far.
    heads = [
        Loop(at + STEP, goal - STEP)
        for at, goal, conditional in branches
        if conditional and goal > at and goal - STEP not in leaps and any(at < step < goal for step in scaling)
    ]
    return instructions, loops[:1] + inner, alternatives + [(head,) for head in heads]


def count_trips(code: Code, alternatives: Sequence[tuple[Loop, ...]]) -> None:
    """A loop within the tile loop walks over the dimensions, with one multiply-add for each pair and dimension (or
    three in TF32): this tells how many it takes in one turn, however it was unrolled. Of two alternatives that both
    have loops the one that takes more is usual; of two without, the one without powers of 2, a series in place of a
    ladder, or the longer one. Where sums go on in float64 only every FLUSH tiles, the longest loop is over groups of so
    many. A loop in it that scales by powers of 2 is over far rungs, of which one is counted, in the last of the loops
    that unrolling left, in place of the last head. Without a tile loop, the program itself is the body."""
    if "split_tiles" not in code.arguments:
        code.loops = []
    steps = {}
    over_dims = code.loops[1:]
    if "FLUSH" in code.arguments and over_dims:  # few tiles have no loop
        tiles = max(over_dims, key=lambda loop: loop.last - loop.first)
        tiles.trips = code.arguments["FLUSH"]
        over_dims.remove(tiles)
    over_rungs = sorted((loop for loop in over_dims if loop.scales), key=lambda loop: loop.first)
    over_dims = [loop for loop in over_dims if not loop.scales]
    if over_rungs:
        code.rare += [Loop(over_rungs[0].first, over_rungs[-1].first - STEP)][: len(over_rungs) - 1]
        heads = [sides[0] for sides in alternatives if len(sides) == 1 and _inside(sides[0], code.loops[0])]
        parts = [*code.loops[1:], *heads]  # a head has none of these in it
        heads = [head for head in heads if not any(part is not head and _inside(part, head) for part in parts)]
        code.rare += sorted(heads, key=lambda head: head.first)[1:][-1:]
    for loop in over_dims:
        body = _body(code, loop)
        fused = 32 * (amount(body, "FFMA") + amount(body, "FFMA2")) + 1024 / 3 * amount(body, "HMMA.1688")
        steps[loop.first] = 2 ** max(0, math.floor(math.log2(max(1.0, 1.05 * fused * code.warps / code.tile))))
        if amount(body, MATRIX):
            steps[loop.first] = code.arguments["BLOCK_D"]
        loop.trips = math.ceil(code.arguments["dim"] / steps[loop.first])
        if amount(body, "MUFU.EX2"):  # over bandwidths, as often as there are exponentials for each pair in its body
            loop.trips = code.arguments["S"] / max(1, round(32 * amount(body, "MUFU.EX2") * code.warps / code.tile))
    for sides in alternatives:
        if len(sides) == 1:
            continue
        of_side = [[steps[at] for at in steps if side.first <= at <= side.last] for side in sides]
        if all(of_side):
            code.rare.append(min(zip(map(max, of_side), range(2), sides, strict=True))[2])
        elif not any(of_side):  # a series, or the ladder in its place
            series = code.arguments.get("SERIES", 0) > 0
            code.rare.append(max(sides, key=lambda side: (series and side.scales, side.first - side.last)))


def _inside(part: Loop, whole: Loop) -> bool:
    return whole.first <= part.first and part.last <= whole.last


def _body(code: Code, loop: Loop) -> Counter[str]:
    return Counter(name for at, name in code.instructions if loop.first <= at <= loop.last)


def _amd(common: tuple[str, tuple[int, ...], dict[str, Any]], target: str, warps: int, shared: int, text: str) -> Code:
    """Metadata and the names of instructions; no loops."""

    def number(key: str) -> int:
        return int((re.findall(rf"\.{key}:\s+(\d+)", text) or ["0"])[-1])

    names = re.findall(r"^\s+([vs]_\w+|ds_\w+|global_\w+|buffer_\w+|scratch_\w+)", text, re.M)
    spills = number("vgpr_spill_count")  # scalar registers spill into vector registers
    return Code(*common, target, warps, number("vgpr_count"), shared, spills, list(enumerate(names)))
