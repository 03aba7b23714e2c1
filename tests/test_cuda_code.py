"""What the CUDA kernels compile to, without a GPU: no spills, and in the loops over pairs what was counted.

The last tests plant what each check looks for.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from cuda_module import DIMS, NVCC, ROOT, architectures, built, needs_nvcc, run
from helpers import FULL, benchmark_modules

pytestmark = [
    needs_nvcc,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="its disassembler comes with Triton"),
]
ARCHITECTURES = [f"sm_{name}" for name in architectures()] if NVCC else []
EXP2 = r"MUFU\.EX2"


@pytest.fixture(scope="module")
def report() -> Iterator[ModuleType]:
    with benchmark_modules("cuda_report") as modules:
        yield modules.cuda_report


Read = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def read(report: ModuleType) -> Read:
    """The codes of all kernels for one architecture, by name."""

    def read_all(architecture: str) -> dict[str, Any]:
        codes = {code.kernel: code for code in report.read_module(built().module, architecture)}
        assert len(codes) > 50
        return codes

    return read_all


def no_spills(codes: dict[str, Any], log: str) -> None:
    """Neither in the machine code, where local memory is anything that has no place in registers, nor by what the
    compiler says; where all architectures are compiled at most one in a thousand executed instructions, and two
    registers."""
    most, bytes_said = (1e-3, 8) if FULL else (0.0, 0)
    spilling = {name: code.registers for name, code in codes.items() if code.spills and code.spilled() >= most}
    assert not spilling, f"spills, and registers: {spilling}"
    said = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(said) >= len(codes)
    assert max(int(size) for sizes in said for size in sizes) <= bytes_said, f"spills: {set(said)}"


def counted(report: ModuleType, code: Any, **expected: float | tuple[float, float]) -> None:
    """Instructions per pair: by name a number, which scheduling may change by 2%, or bounds. FFMA2, FADD2 and FMUL2
    of newer GPUs are two."""
    assert code.loops, f"{code.kernel}: no loop over pairs"
    counts = code.per_pair()
    for name, bounds in expected.items():
        pattern = {"EX2": EXP2, "all": "."}.get(name, name)
        number = report.amount(counts, pattern) + report.amount(counts, name + "2" if name != "EX2" else "$")
        least, most = bounds if isinstance(bounds, tuple) else (0.98 * bounds, 1.02 * bounds)
        assert least <= number <= most, (
            f"{code.kernel}: {number:.3g} {name} per pair, expected {least:.3g} to {most:.3g}"
        )


def single_precision(code: Any) -> None:
    """Nothing in the loop over pairs waits for the few units of float64, or divides."""
    slow = [name for name in code.per_pair() if re.match(r"D(ADD|MUL|FMA|SETP)|F2F|I2F|F2I|MUFU\.(?!EX2)", name)]
    assert not slow, f"{code.kernel}: {slow}"


def wide_reads(code: Any, words: int, pairs: int) -> None:
    """From shared memory, of 16 bytes, so many for so many pairs, and nothing else from memory. Of the last of them the
    compiler may leave out what it does not need."""
    reads = {name: count * pairs for name, count in code.per_pair().items() if re.match(r"LD", name)}
    wide = sum(count for name, count in reads.items() if name.startswith("LDS") and name.endswith(".128"))
    assert sum(reads.values()) == pytest.approx(words), f"{code.kernel}: {reads}"
    assert words - 1 <= wide <= words, f"{code.kernel}: narrow reads, {reads}"


def words_of(numbers: int) -> int:
    """Of 16 bytes."""
    return (numbers + 3) // 4


# --- the kernels ---


def test_every_kernel_is_compiled(read: Read) -> None:
    written = set()
    for path in (ROOT / "csrc" / "cuda").rglob("*.cu*"):
        written |= set(re.findall(r"__global__[^;{]*?(\w+_kernel)\(", path.read_text()))
    for architecture in ARCHITECTURES:
        assert {name.split("<")[0] for name in read(architecture)} == written


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_spills(read: Read, architecture: str) -> None:
    no_spills(read(architecture), built().log)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dim", range(1, DIMS + 1))
def test_mmd2(read: Read, report: ModuleType, architecture: str, dim: int) -> None:
    """A distance takes a subtraction and a multiply-add for each dimension, the kernel 10 terms each for value and
    slope and one power of 2, a gradient another multiply-add for each dimension. The rest is at most three
    multiplications, reading, and the loop."""
    codes = read(architecture)
    words = words_of(dim + 1)
    for gradient in (0, 1):
        code = codes[f"small_kernel<{dim}, {gradient}>"]
        rows = report.TURNS["small_kernel"].pairs(dim, gradient)
        fused = 2 * dim + 23 if gradient else dim + 12
        counted(report, code, FADD=dim, FFMA=(fused - 1, fused), EX2=1, FMUL=(1, 4))
        counted(report, code, all=(fused + dim, 1.06 * (fused + dim + 3 + gradient) + (words + 2) / rows))
        single_precision(code)
        wide_reads(code, words, rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dim", (2, 3, 6))
def test_fourier(read: Read, report: ModuleType, architecture: str, dim: int) -> None:
    """A sum takes D products for the angle, 4 and 5 multiply-adds for sine and cosine and two to add them up; a
    function one of both with 4 or 5. Three additions and a multiplication reduce the angle, one more gives the sign;
    nothing comes from the special-function unit."""
    codes = read(architecture)
    total = codes[f"few_sum_kernel<float, {dim}, 4>"]
    counted(report, total, FFMA=dim + 10, FADD=3, FMUL=3, MUFU=(0, 0), all=(dim + 16, dim + 19.5))
    wide_reads(total, words_of(dim + 1), 4)
    single_precision(total)
    for gradient, fused in ((0, dim + 6), (1, 2 * dim + 4)):
        code = codes[f"few_function_kernel<float, {dim}, 4, {gradient}>"]
        counted(report, code, FFMA=fused, FADD=3, FMUL=(1, 2), MUFU=(0, 0), all=(fused + 4, fused + 7.5))
        wide_reads(code, words_of(dim + 2), 4)
        single_precision(code)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parzen(read: Read, report: ModuleType, architecture: str) -> None:
    """For a pair and sigma: three powers of 2 of four by the special-function unit, the fourth by a polynomial."""
    for source in ("Products", "Coordinates"):
        code = read(architecture)[f"update_kernel<float, {source}<float>>"]
        counted(report, code, EX2=0.75, FFMA=(1.2, 2.2), all=(5, 11))


# --- what the checks look for, planted ---


#: Kernels for float32 and six dimensions are enough to plant something in.
FEWER = (
    (r"task\.is_double\s*\?[^:;]*:", ""),
    (r"case [1-5]: return run\(Constant<\d>\(\)\);|if \(dim <= \d+\) return run\(Constant<\d+>\(\)\);", ""),
    (r"Constant<few_dims>", "Constant<6>"),
)


@pytest.fixture(scope="module")
def compile_planted(
    report: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Compiles one file of the kernels for 90a with a further flag and changes to the sources."""

    def compile(name: str, flag: str, *changes: tuple[str, str]) -> tuple[dict[str, Any], str]:
        folder = tmp_path_factory.mktemp("planted")
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        for pattern, text in (*FEWER, *changes):
            changed = 0
            for path in (folder / "csrc" / "cuda").rglob("*.cu*"):
                planted, number = re.subn(pattern, text, path.read_text())
                path.write_text(planted)
                changed += number
            assert changed, f"no {pattern} to change"
        cubin = folder / "planted.cubin"
        source = folder / "csrc" / "cuda" / name
        command = [
            str(NVCC),
            "-std=c++17",
            "-O3",
            "-arch=sm_90a",
            "-Xptxas=-v",
            "-cubin",
            "-o",
            str(cubin),
            str(source),
        ]
        done = run([*command, flag])
        assert done.returncode == 0, done.stdout
        return {code.kernel: code for code in report.read_module(cubin, "sm_90a")}, done.stdout

    return compile


def test_planted_spills_and_exponentials_are_found(report: ModuleType, compile_planted: Any) -> None:
    """Few registers; every fourth power by the special-function unit in place of three."""
    bounds = (r"__launch_bounds__\([^()]*(\([^()]*\))?[^()]*\)", "")  # they would win
    codes, log = compile_planted("parzen/parzen.cu", "-maxrregcount=32", bounds, (r"k % 4 != 3", "k % 4 == 3"))
    with pytest.raises(AssertionError, match="spills, and registers"):
        no_spills(codes, log)
    with pytest.raises(AssertionError, match="spills: "):
        no_spills({}, log)
    with pytest.raises(AssertionError, match="EX2 per pair, expected 0.735"):
        counted(report, codes["update_kernel<float, Products<float>>"], EX2=0.75)


def test_planted_roundings_and_reads_are_found(report: ModuleType, compile_planted: Any) -> None:
    """Products and sums apart; points at multiples of 4 bytes; a constant in float64."""
    narrow, double = (r"alignas\(16\) Pack", "alignas(4) Pack"), (r"3\.14159179f", "3.14159179")
    codes, log = compile_planted("fourier/fourier.cu", "-fmad=false", narrow, double)
    no_spills({}, log)
    with pytest.raises(AssertionError, match="0 FFMA per pair, expected"):
        counted(report, codes["few_function_kernel<float, 6, 4, 1>"], FFMA=16)
    with pytest.raises(AssertionError, match="few_sum_kernel<float, 6, 4>: .*LDS"):
        wide_reads(codes["few_sum_kernel<float, 6, 4>"], 2, 4)
    with pytest.raises(AssertionError, match="F2F"):
        single_precision(codes["few_sum_kernel<float, 6, 4>"])
