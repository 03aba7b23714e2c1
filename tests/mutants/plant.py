"""Plants the faults listed in this folder, one at a time, and shows that the quick suite catches each (make mutants).

    python tests/mutants/plant.py [--jobs N] [--only TEXT] [--again] [--list] QUICK_TEST_FILES

A mutant replaces one text that occurs exactly once in a file or folder. It is planted in a copy of the working tree
(build/mutants), built as far as it takes (incrementally, one instruction set, hardly optimized), and the tests named
beside it run; the rest of the quick suite runs only if these pass. Results are kept, so that an interrupted run goes on
where it stopped; any change of the sources or tests starts anew. Exit status 1: a survivor, or a mutant that shows
nothing because its text is not there once, or it does not compile or import.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("csrc", "fastmmd", "tests")
SUITE = "tests/test_quick.py"
# What each list of mutants is in, the backends whose tests see it, and the module that is compiled for a backend.
LAYERS = {
    "python": ("reference,native",),
    "cpu": ("reference,native",),
    "cuda": ("cuda",),
    "triton": ("triton",),
    "shared": ("reference,native", "cuda", "triton"),
}
MODULES = {"reference,native": "native", "cuda": "cuda"}
OPTIONS = {"native": ["-DFASTMMD_QUICK=ON"], "cuda": ["-DFASTMMD_CUDA_ON_HOST=ON"]}
LIMIT = 600  # seconds for the tests of one backend; a mutant that hangs is caught


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    layer: str
    fault: str  # in words
    where: str  # a file or folder of the repository
    old: str
    new: str
    tests: str  # what pytest's -k selects of the suite
    file: str = SUITE

    def place(self, root: Path) -> Path:
        """The file that holds the text.

        Raises:
            ValueError: it is not there exactly once.
        """
        base = root / self.where
        files = [base] if base.is_file() else sorted(path for path in base.rglob("*") if path.suffix in SUFFIXES)
        holding = [(path, path.read_text().count(self.old)) for path in files]
        holding = [(path, count) for path, count in holding if count]
        if sum(count for _, count in holding) != 1:
            places = ", ".join(f"{count} in {path.relative_to(root)}" for path, count in holding) or "none"
            raise ValueError(f"{self.name}: expected its text once in {self.where}, got {places}: {self.old!r}")
        return holding[0][0]


SUFFIXES = {".py", ".hpp", ".cpp", ".cu", ".cuh"}


def mutants() -> list[Mutant]:
    """All that are listed, in the order of their files, so that neighbors share what is compiled."""
    listed = [
        Mutant(layer=path.stem, **entry)
        for path in sorted(Path(__file__).parent.glob("*.toml"))
        for entry in tomllib.loads(path.read_text())["mutant"]
    ]
    assert len({mutant.name for mutant in listed}) == len(listed), "two mutants have one name"
    return listed


class Tree:
    """A copy of the working tree, with modules built in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warm: dict[str, subprocess.Popen[str]] = {}  # by backends

    def synchronize(self) -> None:
        """Only what differs is written: what is compiled stays."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *FOLDERS, "pyproject.toml"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        names = {name for name in listed if name and (ROOT / name).is_file()}
        for folder in FOLDERS:
            for path in (self.folder / folder).rglob("*"):
                kept = path.suffix == ".so" or "__pycache__" in path.parts
                if path.is_file() and not kept and str(path.relative_to(self.folder)) not in names:
                    path.unlink()
        for name in names:
            there, content = self.folder / name, (ROOT / name).read_bytes()
            if not there.exists() or there.read_bytes() != content:
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(content)

    def build(self, module: str) -> None:
        """Raises subprocess.CalledProcessError with what the compiler says."""
        import pybind11

        build, tools = self.folder / "build" / module, Path(sys.executable).parent
        path = f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        configure = [
            "cmake", "-S", str(self.folder / "csrc"), "-B", str(build), "-G", "Ninja",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}",
            "-DPYBIND11_FINDPYTHON=ON", f"-DCMAKE_INSTALL_PREFIX={self.folder / 'fastmmd'}", *OPTIONS[module],
        ]  # fmt: skip
        steps = [] if (build / "build.ninja").exists() else [configure]
        steps.append(["cmake", "--build", str(build), *(["--target", "install"] if module == "native" else [])])
        for step in steps:
            subprocess.run(
                step, check=True, env=os.environ | {"PATH": path}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def test(self, backends: str, files: list[str], select: str = "") -> tuple[int, str]:
        """Builds; exit status of pytest, negative if a signal ended it, and what it printed.

        Raises:
            subprocess.CalledProcessError: the compiler fails.
        """
        if backends in MODULES:  # also for a fault in Python: the module may have that of the mutant before
            self.build(MODULES[backends])
        if backends not in self.warm:
            self.warm[backends] = self._start(backends)
        process, output = self.warm[backends], self.folder / "output.txt"
        arguments = [
            "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--backends", backends,
            *(["-k", select] if select else []), *files,
        ]  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([arguments, str(output)]) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        return status, f"more than {LIMIT} s" if status == -signal.SIGALRM else output.read_text()

    def _start(self, backends: str) -> subprocess.Popen[str]:
        """A process that runs tests of these backends, see warm.py. It has nothing of fastmmd."""
        environment = os.environ | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        modules = ["pytest", "torch"]
        if backends == "triton":
            environment["TRITON_INTERPRET"] = "1"
            modules.append("triton")
        if backends == "cuda":
            environment["FASTMMD_CUDA_ON_HOST"] = str(self.folder / "build" / "cuda")
        command = [sys.executable, str(Path(__file__).with_name("warm.py")), str(LIMIT), *modules]
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def close(self) -> None:
        for process in self.warm.values():
            process.communicate()


def write(path: Path, text: str) -> None:
    """Without the cached module, which Python would take for the new one if it has the same second and size."""
    path.write_text(text)
    for cached in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        cached.unlink()


def ran(status: int) -> bool:
    """Whether tests ran: all passed, one failed, or the process died; else pytest could not begin."""
    return status in (0, 1) or status < 0


def verdict(tree: Tree, mutant: Mutant, files: list[str]) -> tuple[str, str]:
    """(caught, by what), (survived, "") or (invalid, why)."""
    backends = LAYERS[mutant.layer]
    place = mutant.place(tree.folder)
    text = place.read_text()
    write(place, text.replace(mutant.old, mutant.new))
    try:
        quick = [(name, [mutant.file], mutant.tests) for name in backends]
        whole = [(name, files if "reference" in name else [SUITE], "") for name in backends]
        for number, (name, selected, expression) in enumerate([*quick, *whole]):
            status, output = tree.test(name, selected, expression)
            if not ran(status):
                if status == 5 and number < len(quick):  # none of these concerns the backend
                    continue
                return "invalid", output.strip()[-1500:]
            if status:
                failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
                by = failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else f"{name}: exit status {status}"
                return "caught", by if number < len(quick) else f"{by} (not by what the list names)"
        return "survived", ""
    except subprocess.CalledProcessError as error:
        return "invalid", error.output.strip()[-1500:]
    finally:
        write(place, text)


def digest(folder: Path) -> str:
    state = hashlib.sha256()
    for name in FOLDERS:
        for path in sorted((folder / name).rglob("*")):
            if path.suffix in SUFFIXES:
                state.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return state.hexdigest()


class Results:
    """Verdicts by mutant, on the disk."""

    def __init__(self, path: Path, state: str) -> None:
        self.path, self.state, self.lock = path, state, threading.Lock()
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.verdicts: dict[str, list[str]] = kept["verdicts"] if kept.get("state") == state else {}

    def key(self, mutant: Mutant) -> str:
        return hashlib.sha256(repr(mutant).encode()).hexdigest()

    def known(self, mutant: Mutant) -> list[str] | None:
        return self.verdicts.get(self.key(mutant))

    def add(self, mutant: Mutant, outcome: tuple[str, str]) -> None:
        with self.lock:
            self.verdicts[self.key(mutant)] = list(outcome)
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"state": self.state, "verdicts": self.verdicts}))
            temporary.replace(self.path)


def baseline(tree: Tree, layers: set[str], files: list[str]) -> None:
    """Builds, and runs the suite without a fault: it must pass.

    Raises:
        SystemExit: it does not.
    """
    for name in sorted({name for layer in layers for name in LAYERS[layer]}):
        status, output = tree.test(name, files if "reference" in name else [SUITE])
        print(f"without a fault, {name}: {output.strip().splitlines()[-1]}", flush=True)
        if status:
            raise SystemExit(f"{output}\nthe quick suite fails without a fault on {name}: mend it first")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", default=[SUITE], help="the quick suite on the CPU")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--again", action="store_true", help="forget the results of earlier runs")
    parser.add_argument("--list", action="store_true", help="print the mutants and where they are")
    options = parser.parse_args()
    chosen = [mutant for mutant in mutants() if options.only in mutant.name]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:34} {mutant.place(ROOT).relative_to(ROOT)}: {mutant.fault}")
        return 0
    # In a mutated tree the list no longer applies, which says nothing about the fault.
    files = [name for name in options.files if not name.endswith("test_mutants.py")]
    for mutant in chosen:
        if mutant.file not in files:
            raise SystemExit(f"{mutant.name}: {mutant.file} is not of the quick suite, {' '.join(files)}")
    folder = ROOT / "build" / "mutants"
    trees = [Tree(folder / str(number)) for number in range(options.jobs)]
    for tree in trees:
        tree.synchronize()
    if options.again:
        (folder / "results.json").unlink(missing_ok=True)
    results = Results(folder / "results.json", digest(trees[0].folder))
    todo: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    left = sorted((m for m in chosen if results.known(m) is None), key=lambda m: (m.layer, m.place(ROOT)))
    for mutant in left:
        todo.put(mutant)
    print(f"{len(chosen)} mutants, {len(chosen) - len(left)} known from an earlier run", flush=True)
    if left:
        baseline(trees[0], {mutant.layer for mutant in left}, files)

    def work(tree: Tree) -> None:
        try:
            while True:
                mutant = todo.get_nowait()
                start = time.perf_counter()
                outcome = verdict(tree, mutant, files)
                results.add(mutant, outcome)
                print(f"{mutant.name:34} {outcome[0]:9} {time.perf_counter() - start:4.0f} s  {outcome[1]}", flush=True)
        except queue.Empty:
            tree.close()

    workers = [threading.Thread(target=work, args=(tree,)) for tree in trees if left]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return report(chosen, results)


def report(chosen: list[Mutant], results: Results) -> int:
    """Prints the table; the exit status."""
    counts: dict[str, list[int]] = {}
    print(f"\n{'mutant':34} {'verdict':9} fault, and the test that caught it")
    for mutant in chosen:
        kind, by = results.known(mutant) or ("not run", "")
        row = counts.setdefault(mutant.layer, [0, 0])
        row[0] += 1
        row[1] += kind == "caught"
        print(f"{mutant.name:34} {kind:9} {mutant.fault}; {by.splitlines()[-1] if by else 'no test'}")
    print()
    for layer, (number, caught) in counts.items():
        print(f"{layer:8} {caught} of {number} caught")
    number, caught = (sum(column) for column in zip(*counts.values(), strict=True))
    print(f"{'all':8} {caught} of {number} caught")
    return int(caught < number)


if __name__ == "__main__":
    if shutil.which("git") is None:
        raise SystemExit("git is not installed: it lists the files that are copied")
    raise SystemExit(main())
