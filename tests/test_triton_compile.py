"""What the Triton kernels compile to without a GPU: no spills, the intended matrix instructions, wide loads.

Compiled in processes of their own, since Triton decides at the import of a kernel whether it is interpreted. The last
tests plant what each check looks for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import BENCHMARKS, FULL, benchmark_modules

ROOT = Path(__file__).parent.parent
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942") if FULL else ("sm_90",)
FULL_PRECISION = {"mmd2-wide": 784}  # products by tl.dot in float32: dimensions
HALVES = {"parzen": 784, "parzen-backward": 784}  # those of float16 halves
PRODUCTS = FULL_PRECISION | HALVES
CASES = (
    "mmd2-8192",
    "mmd2-value",
    "mmd2-classes",
    "frequencies",
    "fourier",
    "fourier-backward",
    *PRODUCTS,
)
CASES += ("mmd2-1000", "mmd2-65536", "mmd2-weights", "mmd2-classes-wide") if FULL else ()
MATRIX = r"(HMMA|HGMMA|DMMA|IMMA|QGMMA|UTC\w*MMA)\b"
PER_LAUNCH = [(case, architecture) for case in CASES for architecture in ARCHITECTURES]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed; pip install triton"
)


@pytest.fixture(scope="module")
def machine_code() -> Iterator[ModuleType]:
    with benchmark_modules("machine_code") as modules:
        yield modules.machine_code


def start(output: Path, package: Path = ROOT, **options: Any) -> subprocess.Popen[str]:
    """benchmarks/triton_report.py on the fastmmd in `package`. One process compiles on one core."""
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / "triton_report.py"), "--json", str(output)]
    for name, value in options.items():
        command += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], output: Path) -> dict[str, Any]:
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def compiled(machine_code: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """ "kernels": their names; "cases": name -> code of every launch."""
    folder = tmp_path_factory.mktemp("compiled")
    halves = [(folder / f"{half}.json", CASES[half::2]) for half in range(2)]
    some = {} if FULL else {"configurations": 1}
    running = [(start(output, arch=ARCHITECTURES, case=names, **some), output) for output, names in halves]
    reports = [finish(process, output) for process, output in running]
    codes = {name: codes for report in reports for name, codes in report["cases"].items()}
    return {"kernels": reports[0]["kernels"], "cases": _codes(machine_code, codes)}


def _codes(machine_code: ModuleType, cases: dict[str, list[dict[str, Any]]]) -> dict[str, list[Any]]:
    return {name: [machine_code.Code.of_json(code) for code in codes] for name, codes in cases.items()}


def of(compiled: dict[str, Any], case: str, architecture: str) -> list[Any]:
    codes = [code for code in compiled["cases"][case] if code.target == architecture]
    assert codes, "nothing was launched"
    return codes


def no_spills(codes: list[Any]) -> None:
    """Nor, where all cases and architectures are compiled, one that shows: in a thousand executed instructions."""
    most = 1e-3 if FULL else 0.0
    spilling = {code.kernel: (code.spills, code.registers) for code in codes if code.spills and code.spilled() >= most}
    assert not spilling, f"spills and registers: {spilling}"


def full_precision(codes: list[Any], dim: int) -> None:
    """input_precision="ieee": a tensor core would take float32 as TF32, an error of 5e-4 that the contract forbids.
    Distances take one multiply-add per pair and dimension, gradients up to another."""
    codes = [code for code in codes if {"BLOCK_J", "BLOCK_D"} <= code.arguments.keys()]
    assert codes, "no kernel with products"
    for code in codes:
        if code.target.startswith("gfx"):  # whose matrix instructions take float32 as it is, unless they are xf32
            assert not code.of(r"v_s?mfma\w*xf32")
            assert code.of(r"v_s?mfma_f32_\w*x\d+_?f32|v_(pk_)?fma(c|k)?_f32")
            continue
        assert not code.of(MATRIX), f"{code.kernel}: tensor cores"
        counts = code.per_pair()
        fused = sum(
            number * (2 if name.startswith("FFMA2") else 1) for name, number in counts.items() if "FFMA" in name
        )
        most = 2 * dim if code.arguments.get("GRADIENT") else dim
        assert dim <= fused <= 1.4 * most, f"{code.kernel}: {fused:.0f} multiply-adds, expected {dim} to {most}"


def three_products(codes: list[Any], dim: int) -> None:
    """Tensor cores take float16: high . high alone would be wrong by 5e-4, so that there are three products, of which
    gradients take another three. Pairs whose products cancel, and what is done once, take no tensor core."""
    assert any(code.arguments.get("HALVES") for code in codes)
    for code in codes:
        amd = code.target.startswith("gfx")
        matrix = code.of(r"v_mfma_f32_\w*f16\b" if amd else MATRIX)
        if not code.arguments.get("HALVES"):
            assert not matrix, f"{code.kernel}: {matrix[0]}"
            continue
        assert matrix and not any("TF32" in name or "BF16" in name for name in matrix), code.kernel
        if code.target in ("sm_80", "sm_90"):  # later ones do not say how many multiply-adds an instruction is
            expected = 3 * dim * (2 if code.kernel == "gradient_kernel" else 1)
            number = code.matrix_multiply_adds()
            assert expected <= number <= 1.05 * expected, f"{code.kernel}: {number:.0f} multiply-adds of {expected}"


def wide_loads(codes: list[Any]) -> None:
    """Rows of 784 floats begin at multiples of 64 bytes; loops over their dimensions load 8 or 16 bytes at a time."""
    for code in codes:
        if not {"BLOCK_J", "BLOCK_D"} <= code.arguments.keys() and code.kernel != "split_kernel":
            continue
        if code.arguments.get("CANCELING"):  # by single dimensions
            continue
        if code.target.startswith("gfx"):
            assert code.of(r"(global|buffer)_load_dwordx4"), code.kernel
            continue
        loads = code.inner_loads() if code.loops else code.of(r"LDG(?!DEPBAR)")
        assert loads, f"{code.kernel}: no loads in the loops over dimensions"
        narrow = [name for name in loads if not name.endswith(("64", "128"))]
        assert not narrow, f"{code.kernel}: {len(narrow)} of {len(loads)} loads are narrow, such as {narrow[0]}"


def fused(codes: list[Any]) -> None:
    """Polynomials in FFMA: more of them than of additions and multiplications that could not be fused."""
    for code in codes:
        counts = code.per_pair()
        assert "BLOCK_J" not in code.arguments or counts["FFMA"] > counts["FMUL"], code.kernel


# --- the kernels ---


def test_every_kernel_is_compiled(compiled: dict[str, Any]) -> None:
    seen = {code.kernel for codes in compiled["cases"].values() for code in codes}
    assert seen == set(compiled["kernels"]) - (set() if FULL else {"rungs_kernel"})  # of mmd2-weights


@pytest.mark.parametrize(("case", "architecture"), PER_LAUNCH)
def test_nothing_spills(compiled: dict[str, Any], case: str, architecture: str) -> None:
    no_spills(of(compiled, case, architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", FULL_PRECISION)
def test_products_keep_float32(compiled: dict[str, Any], case: str, architecture: str) -> None:
    full_precision(of(compiled, case, architecture), FULL_PRECISION[case])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", HALVES)
def test_products_of_halves_take_tensor_cores(compiled: dict[str, Any], case: str, architecture: str) -> None:
    three_products(of(compiled, case, architecture), HALVES[case])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", PRODUCTS)
def test_rows_are_loaded_in_wide_words(compiled: dict[str, Any], case: str, architecture: str) -> None:
    wide_loads(of(compiled, case, architecture))


def test_multiply_adds_are_fused(compiled: dict[str, Any]) -> None:
    fused(of(compiled, "mmd2-value", "sm_90"))


def test_prediction_counts_every_launch(compiled: dict[str, Any], machine_code: ModuleType) -> None:
    codes = [code for code in of(compiled, "mmd2-value", "sm_90") if code.kernel == "small_kernel"]
    half, code = (next(code for code in codes if code.arguments["HALF"] == value) for value in (True, False))
    assert (half.pairs, code.pairs) == (8192**2 // 2, 8192**2)
    seconds = code.seconds()
    assert set(seconds) == set(machine_code.PIPES)
    instructions = machine_code.amount(code.per_pair(), r".")
    assert seconds["issue"] == pytest.approx(8192**2 * instructions / (128 * 132 * 1.98e9))
    assert 6 < instructions < 1000  # a difference takes at least one for each dimension


@pytest.mark.parametrize("case", ["mmd2-8192", "mmd2-value", "fourier", "fourier-backward"])
def test_float64_takes_less_time_than_the_rest(compiled: dict[str, Any], machine_code: ModuleType, case: str) -> None:
    """Also on GPUs that do one operation of float64 for 64 of float32, as most but those for data centers."""
    pairs = [
        code for code in of(compiled, case, "sm_90") if code.kernel in ("small_kernel", "sum_kernel", "function_kernel")
    ]
    assert pairs
    for code in pairs:
        counts = code.per_pair()
        wide = machine_code.amount(counts, r"D(ADD|MUL|FMA|SETP)|F2F\.(F64|F32\.F64)")
        assert 0 < 64 * wide <= machine_code.amount(counts, "."), f"{code.kernel}: {wide:.3g} of float64 per pair"


OPERATIONS = ("mmd2", "mmd2 of classes", "fourier", "parzen", "parzen backward")
COUNT_VARIANTS = """
import json, sys
from triton_report import random_sizes, variants
print(json.dumps({name: variants(lambda: random_sizes(name)) for name in sys.argv[1:]}))
"""


def test_random_sizes_compile_few_variants() -> None:
    """Each takes the compiler half a second or more, in the middle of training."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(BENCHMARKS))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COUNT_VARIANTS, *OPERATIONS],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = {name: Counter(kernels) for name, kernels in json.loads(done.stdout).items()}
    assert all(0 < sum(kernels.values()) <= 8 for kernels in counts.values()), counts


# --- what the checks look for, planted ---

plants = pytest.mark.skipif(not FULL, reason="compiles wrong kernels; part of make test-full")


@pytest.fixture(scope="module")
def planted(machine_code: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Case -> code: "fourier" with few registers; the others on tensors 4 bytes off, in kernels without fusion whose
    products are in TF32 or lack a third, in one configuration."""
    folder = tmp_path_factory.mktemp("planted")
    wrong = folder / "wrong"
    shutil.copytree(ROOT / "fastmmd", wrong / "fastmmd", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    changes = {'input_precision="ieee"': 'input_precision="tf32"', "part = tl.dot(left_high,": "tl.dot(left_high,"}
    changes['"enable_fp_fusion": True'] = '"enable_fp_fusion": False'
    for right, planted in changes.items():
        changed = 0
        for path in (wrong / "fastmmd" / "backends" / "triton").rglob("*.py"):
            text = path.read_text()
            changed += text.count(right)
            path.write_text(text.replace(right, planted))
        assert changed, f"no {right} to change"
    cases = ("mmd2-wide", "mmd2-value", "parzen")
    starts: dict[str, dict[str, Any]] = {
        "registers": {"case": ("fourier",), "maxnreg": 32},
        "wrong": {"case": cases, "package": wrong, "offset": 1, "configurations": 1},
    }
    running = [
        (start(folder / f"{name}.json", arch="sm_90", **options), folder / f"{name}.json")
        for name, options in starts.items()
    ]
    reports = [finish(process, output)["cases"] for process, output in running]
    return _codes(machine_code, {name: codes for report in reports for name, codes in report.items()})


@plants
def test_planted_spills_are_found(planted: dict[str, list[Any]]) -> None:
    with pytest.raises(AssertionError, match="spills"):
        no_spills(planted["fourier"])


@plants
def test_planted_narrow_loads_are_found(planted: dict[str, list[Any]]) -> None:
    with pytest.raises(AssertionError, match="narrow"):
        wide_loads(planted["parzen"])


@plants
def test_planted_tf32_is_found(planted: dict[str, list[Any]]) -> None:
    with pytest.raises(AssertionError, match="tensor cores"):
        full_precision(planted["mmd2-wide"], 784)


@plants
def test_planted_lack_of_a_product_is_found(planted: dict[str, list[Any]]) -> None:
    with pytest.raises(AssertionError, match=r"1600 multiply-adds of 2352"):
        three_products(planted["parzen"], 784)


@plants
def test_planted_separate_roundings_are_found(planted: dict[str, list[Any]]) -> None:
    with pytest.raises(AssertionError, match="_kernel"):
        fused(planted["mmd2-value"])


def test_loops_and_alternatives(machine_code: ModuleType) -> None:
    """An if with an else, each side a loop, in the tile loop; then what fills the space behind the program."""
    lines = [
        "MOV R1, R2", "@P0 BRA 0x0060",
        "FADD R1, R1, R2", "@P1 BRA 0x0020", "FADD R1, R1, R2", "BRA 0x00a0",
        "FFMA R1, R1, R2, R3", "FFMA R1, R1, R2, R3", "LDG.E.128 R4, desc[UR4][R2.64]", "@!P2 BRA 0x0060",
        "BRA.U UP0, 0x0000", "EXIT", "BRA 0x00c0",
    ]  # fmt: skip
    listing = "\n".join(f"        /*{16 * at:04x}*/    {line} ;    /* 0x0 */" for at, line in enumerate(lines))
    instructions, loops, alternatives = machine_code.parse(listing)
    assert len(instructions) == len(lines)
    assert [(loop.first, loop.last) for loop in loops] == [(0x00, 0xA0), (0x60, 0x90), (0x20, 0x30)]
    assert [[(side.first, side.last) for side in sides] for sides in alternatives] == [[(0x20, 0x50), (0x60, 0x90)]]
    arguments = {"n": 64, "m": 32, "dim": 6, "split_tiles": 4, "BLOCK_I": 32, "BLOCK_J": 1}
    code = machine_code.Code("kernel", (2, 1), arguments, "sm_90", 1, 32, 0, 0, instructions, loops)
    machine_code.count_trips(code, alternatives)
    # Two multiply-adds of 32 threads on 32 pairs: two dimensions in a turn, three turns.
    assert [loop.trips for loop in code.loops] == [1, 3, 6]
    assert [(part.first, part.last) for part in code.rare] == [(0x20, 0x50)]
    assert code.per_pair() == {"MOV": 1, "BRA": 1 + 3, "FFMA": 6, "LDG.E.128": 3, "BRA.U": 1}
    assert code.inner_loads() == ["LDG.E.128"]


def test_sums_flushed_every_few_tiles(machine_code: ModuleType) -> None:
    """The inner loop is over tiles, and what follows it runs once for all of them."""
    lines = ["MOV R1, R2", "FFMA R1, R1, R2, R3", "BRA.U UP0, 0x0010", "DADD R4, R4, R6", "@P0 BRA 0x0000", "EXIT"]
    listing = "\n".join(f"        /*{16 * at:04x}*/    {line} ;    /* 0x0 */" for at, line in enumerate(lines))
    instructions, loops, alternatives = machine_code.parse(listing)
    arguments = {"n": 64, "m": 32, "dim": 1, "split_tiles": 4, "BLOCK_I": 32, "BLOCK_J": 1, "FLUSH": 8}
    code = machine_code.Code("kernel", (2, 1), arguments, "sm_90", 1, 32, 0, 0, instructions, loops)
    machine_code.count_trips(code, alternatives)
    assert code.per_pair() == {"MOV": 1 / 8, "FFMA": 1, "BRA.U": 1, "DADD": 1 / 8, "BRA": 1 / 8}
