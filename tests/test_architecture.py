"""The house rules that a parser can check: arrows between packages, public PyTorch only, sizes, honest signatures.

    python tests/test_architecture.py [REVISION ...]

prints the numbers that tell how much a change touches, for the working tree and for revisions beside it.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_ARGUMENTS, FUNCTION_LINES, CLASS_LINES, FILE_LINES = 12, 100, 250, 400
CPP = (".cpp", ".hpp", ".cu", ".cuh")
CODE = (".py", *CPP)
#: From the bottom up; a module imports what stands before it, or in its own package. What is not listed may import all.
LEVELS = (
    ("errors",), ("kernels", "device_cache", "files"), ("backends",), ("ops",), ("priors",), ("nn",),
    ("data", "checkpoint"), ("evaluation",), ("training",),
)  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FAMILIES = ("gaussian", "laplacian", "imq", "rational_quadratic", "energy")


@dataclass(frozen=True)
class Module:
    """A Python file of the package, parsed."""

    path: Path
    root: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        return str(self.path.relative_to(self.root))

    @property
    def package(self) -> str:
        """The first level below fastmmd."""
        return self.path.relative_to(self.root / "fastmmd").parts[0].removesuffix(".py")

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))

    def functions(self) -> Iterator[ast.FunctionDef]:
        return self.nodes(ast.FunctionDef, ast.AsyncFunctionDef)  # type: ignore[return-value]


def files(root: Path, *folders: str, suffixes: tuple[str, ...] = CODE) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*") if path.suffix in suffixes)


def modules(root: Path) -> list[Module]:
    return [Module(path, root, ast.parse(path.read_text())) for path in files(root, "fastmmd", suffixes=(".py",))]


# --- arrows ---


def imported(module: Module) -> Iterator[tuple[int, str]]:
    """Line and first level of every import of the package itself; "" for `import fastmmd`, the public names."""
    for node in module.nodes(ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.level:
            parts = module.path.relative_to(module.root).parts[: -node.level]
            names = [".".join((*parts, *([node.module] if node.module else ())))]
            if names == ["fastmmd"]:
                names = [f"fastmmd.{alias.name}" for alias in node.names]
        else:
            names = [node.module or ""]
            if names == ["fastmmd"]:
                names = [f"fastmmd.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "fastmmd":
                yield node.lineno, ".".join(name.split(".")[1:2])


def arrows(root: Path) -> Iterator[str]:
    for module in modules(root):
        level = LEVEL.get(module.package)
        for line, target in imported(module) if level is not None else ():
            public = LEVEL["nn"] if target == "" or target not in LEVEL else LEVEL[target]
            if target != module.package and public >= level:
                what = f"fastmmd.{target}" if target else "fastmmd"
                yield f"{module.name}:{line}: {module.package} imports {what}, which lies above it or beside it"


# --- torch ---


def private_torch(root: Path) -> Iterator[tuple[str, str]]:
    """Where and which names with an underscore are reached through torch, or through what is imported from it."""
    for module in modules(root):
        torch = {"torch"}
        for node in module.nodes(ast.Import, ast.ImportFrom):
            source = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
            for alias in node.names:
                full = f"{source}.{alias.name}" if source else alias.name
                if full.split(".")[0] == "torch":
                    torch.add((alias.asname or alias.name).split(".")[0])
                    if any(private(part) for part in full.split(".")):
                        yield f"{module.name}:{node.lineno}", full
        inner = {node.value for node in module.nodes(ast.Attribute)}  # of a.b.c the parts a and a.b
        for node in module.nodes(ast.Attribute, ast.Call):
            chain = dotted(node)
            if chain and chain[0] in torch and node not in inner and any(map(private, chain)):
                yield f"{module.name}:{node.lineno}", ".".join(chain)


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def dotted(node: ast.AST) -> list[str]:
    """a.b.c, or getattr(a.b, "c", ...), as its parts; nothing for what does not begin with a name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return [*before, node.attr] if before else []
    if isinstance(node, ast.Call) and dotted(node.func) == ["getattr"] and len(node.args) > 1:
        before, name = dotted(node.args[0]), node.args[1]
        return [*before, name.value] if before and isinstance(name, ast.Constant) else []
    return []


# --- sizes and signatures ---


def arguments(function: ast.FunctionDef) -> int:
    """Those that a call passes; of a public function not the keyword-only ones."""
    given = function.args
    return len(given.posonlyargs) + len(given.args) + (len(given.kwonlyargs) if private(function.name) else 0)


def on_gpu(function: ast.FunctionDef) -> bool:
    decorators = (node.func if isinstance(node, ast.Call) else node for node in function.decorator_list)
    return any("jit" in dotted(decorator)[-1:] for decorator in decorators)


def python_sizes(root: Path) -> Iterator[str]:
    for module in modules(root):
        for function in module.functions():
            where, lines = f"{module.name}:{function.lineno}", function.end_lineno - function.lineno + 1
            if arguments(function) > MOST_ARGUMENTS and not on_gpu(function):
                yield f"{where}: {function.name} takes {arguments(function)} arguments"
            if lines > FUNCTION_LINES:
                yield f"{where}: {function.name} has {lines} lines"
        for class_ in module.nodes(ast.ClassDef):
            lines = class_.end_lineno - class_.lineno + 1
            if lines > CLASS_LINES:
                yield f"{module.name}:{class_.lineno}: class {class_.name} has {lines} lines"


@dataclass(frozen=True)
class CppBlock:
    """A function or class of C++, read by its brackets."""

    where: str
    name: str
    arguments: int
    lines: int
    is_class: bool
    on_gpu: bool


# From a parameter list to the body: qualifiers, the type of a lambda's result, a constructor's initializers.
BODY = re.compile(r"\s*(?:(?:const|noexcept|override)\b\s*)*(?:->[^{};]*)?(?::(?!:)[^;{}]*(?:\{[^{}]*\}[^;{}]*)*)?\{")
CLASS = re.compile(r"\b(?:class|struct)\s+(?:alignas\(\d+\)\s*)?(\w+)\b(?!\s*[>,])[^;{}()]*\{")


def cpp_blocks(root: Path) -> Iterator[CppBlock]:
    """What is defined in csrc: `name(...) {`, and class or struct `name ... {`."""
    for path in files(root, "csrc", suffixes=CPP):
        text = without_comments(path.read_text())
        for match in CLASS.finditer(text):
            yield _block(path, root, text, match.start(), match[1], 0, match.end() - 1, True)
        for match in re.finditer(r"\b(\w+)\s*\(", text):
            end = closing(text, match.end() - 1)
            body = BODY.match(text, end)
            if body and match[1] not in ("if", "for", "while", "switch", "catch", "return", "__launch_bounds__"):
                count = commas(text[match.end() : end - 1])
                yield _block(path, root, text, match.start(), match[1], count, body.end() - 1, False)


def _block(
    path: Path, root: Path, text: str, start: int, name: str, count: int, brace: int, is_class: bool
) -> CppBlock:
    line, end = text.count("\n", 0, start) + 1, text.count("\n", 0, closing(text, brace)) + 1
    head = text[text.rfind("}", 0, start) + 1 : start]
    where = f"{path.relative_to(root)}:{line}"
    return CppBlock(where, name, count, end - line + 1, is_class, "__global__" in head)


def without_comments(text: str) -> str:
    """Comments, strings and preprocessor lines blanked, the lines kept."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|^[ \t]*#(?:\\\n|[^\n])*'
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S | re.M)


def closing(text: str, at: int) -> int:
    """The place behind the bracket that closes the one at `at`."""
    opens, closes = text[at], {"(": ")", "{": "}"}[text[at]]
    depth = 0
    for match in re.compile(f"[{re.escape(opens + closes)}]").finditer(text, at):
        depth += 1 if match[0] == opens else -1
        if depth == 0:
            return match.end()
    return len(text)


def commas(text: str) -> int:
    """Arguments of a parameter list."""
    if not text.strip():
        return 0
    depth, count = 0, 1
    for character in text.replace("->", "  "):
        depth += (character in "(<[{") - (character in ")>]}")
        count += character == "," and depth == 0
    return count


def cpp_sizes(root: Path) -> Iterator[str]:
    for block in cpp_blocks(root):
        if block.arguments > MOST_ARGUMENTS and not block.on_gpu:
            yield f"{block.where}: {block.name} takes {block.arguments} arguments"
        if block.lines > (CLASS_LINES if block.is_class else FUNCTION_LINES):
            yield f"{block.where}: {block.name} has {block.lines} lines"


def file_sizes(root: Path) -> Iterator[str]:
    for path in files(root, "fastmmd", "csrc", "tests", "benchmarks", "python"):
        lines = path.read_text().count("\n")
        if lines > FILE_LINES:
            yield f"{path.relative_to(root)}: {lines} lines"


def dishonest_signatures(root: Path) -> Iterator[str]:
    for module in modules(root):
        for node in module.nodes(ast.Call):
            if dotted(node.func) == ["locals"]:
                yield f"{module.name}:{node.lineno}: locals()"
        inner = {id(f) for outer in module.functions() for f in ast.walk(outer) if f is not outer}
        for function in module.functions():
            rest = function.args.vararg
            if (
                rest is not None
                and id(function) not in inner  # which forwards what it wraps
                and rest.arg != "_"
                and rest.annotation is not None
                and dotted(rest.annotation)[-1:] == ["Any"]
            ):
                yield f"{module.name}:{function.lineno}: {function.name}(*{rest.arg}: Any)"


def reported(violations: Iterator[str]) -> None:
    lines = sorted(violations)
    assert not lines, f"{len(lines)} violations\n" + "\n".join(lines)


def test_arrows_between_packages_run_down() -> None:
    reported(arrows(ROOT))


def test_no_private_names_of_torch() -> None:
    reported(f"{where}: {name}" for where, name in private_torch(ROOT))


def test_functions_and_classes_are_small() -> None:
    reported(python_sizes(ROOT))


def test_functions_and_classes_of_cpp_are_small() -> None:
    reported(cpp_sizes(ROOT))


def test_files_are_readable_in_one_sitting() -> None:
    reported(file_sizes(ROOT))


def test_signatures_are_honest() -> None:
    reported(dishonest_signatures(ROOT))


def test_the_checks_can_fail(tmp_path: Path) -> None:
    """Each on a package that breaks every rule once."""
    (tmp_path / "fastmmd" / "ops").mkdir(parents=True)
    (tmp_path / "csrc").mkdir()
    many = ", ".join(f"a{i}" for i in range(13))
    (tmp_path / "fastmmd" / "ops" / "bad.py").write_text(
        "import torch\nfrom torch.autograd import forward_ad\nfrom typing import Any\nfrom ..nn import x\n"
        f"def f({many}, *rest: Any):\n    return locals(), torch._C.f, forward_ad._x, getattr(torch._C, '_y')\n"
        f"class Long:\n    def g(self):\n{'        pass' + chr(10)}{'        # on' + chr(10)}" + "        pass\n" * 400
    )
    (tmp_path / "csrc" / "bad.cpp").write_text(
        f"// f(a) {{\nint f({many.replace('a', 'int a')}) {{\n" + "    g();\n" * 110 + "}\n"
    )
    assert [len(list(check(tmp_path))) for check in (arrows, private_torch, file_sizes)] == [1, 4, 1]
    assert [len(list(check(tmp_path))) for check in (python_sizes, cpp_sizes, dishonest_signatures)] == [3, 2, 2]


# --- numbers ---


def naming(root: Path, operation: str) -> int:
    """Code files of the package and of csrc in which the operation's name stands."""
    return sum(bool(re.search(rf"\b{operation}", path.read_text())) for path in files(root, "fastmmd", "csrc"))


def branch_sites(root: Path) -> tuple[int, int]:
    """Lines that decide by the name of a kernel family, and files that have one."""
    family = rf"(?:[\"'](?:{'|'.join(FAMILIES)})[\"']|KernelName::\w+)"
    decides = re.compile(rf"(?:[=!]=\s*{family}|{family}\s*[=!]=|\bin \([^)]*{family}|\bcase {family}|{family}:\s)")
    counts = [sum(bool(decides.search(line)) for line in path.read_text().splitlines())
              for path in files(root, "fastmmd", "csrc")]  # fmt: skip
    return sum(counts), sum(count > 0 for count in counts)


def numbers(root: Path) -> dict[str, str]:
    table = {f"code files naming {name}": str(naming(root, name))
             for name in ("mmd2", "witness", "fourier_sum", "fourier_discrepancy", "parzen_update")}  # fmt: skip
    python = [(arguments(f), f"{m.name}: {f.name}") for m in modules(root) for f in m.functions() if not on_gpu(f)]
    cpp = [(b.arguments, f"{b.where.split(':')[0]}: {b.name}") for b in cpp_blocks(root) if not b.on_gpu]
    for what, counted in (("Python", python), ("C++", cpp)):
        most, name = max(counted)
        table[f"most arguments, {what}"] = f"{most} ({name})"
    sites, where = branch_sites(root)
    table["branch sites on kernel families"] = f"{sites} in {where} files"
    names = {name for _, name in private_torch(root)}
    names -= {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    table["private names of torch"] = str(len(names))
    checks: tuple[Callable[[Path], Iterator[str]], ...] = (arrows, python_sizes, cpp_sizes, file_sizes)
    for check in checks:
        table[f"violations, {check.__name__}"] = str(len(list(check(root))))
    return table


def main(revisions: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables = {}
        for revision in revisions:
            archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(Path(folder) / revision, filter="data")
            tables[revision] = numbers(Path(folder) / revision)
        tables["here"] = numbers(ROOT)
    for row in tables["here"]:
        print(f"{row:36}" + "".join(f"{name}: {table[row]:44}" for name, table in tables.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
