"""The documentation keeps step with the repository: paths, links, make targets, code, and the width of its lines."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastmmd

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "NOTES.md"]
OPERATIONS = ("mmd", "fourier", "parzen")
COLUMNS = 100
CODE_COLUMNS = 120
TOP_LEVEL = {path.name for path in ROOT.iterdir()} - {"build"}


def page(name: str) -> str:
    return (ROOT / name).read_text()


def parts(text: str) -> tuple[list[str], list[str]]:
    """The lines of a page outside and inside its code blocks."""
    lines: tuple[list[str], list[str]] = ([], [])
    inside = False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
        else:
            lines[inside].append(line)
    return lines


def paths_in(text: str) -> Iterator[str]:
    """What stands in backticks and begins like a path of the repository."""
    for quoted in re.findall(r"`([^`\s]+)`", text):
        if quoted.split("/")[0] in TOP_LEVEL and ("/" in quoted or "." in quoted) and "=" not in quoted:
            yield quoted


def exists(path: str) -> bool:
    """Whether a path exists, `<operation>` standing for each: as a module or as the folder of that name."""
    expanded = [path.replace("<operation>", name) for name in OPERATIONS]
    return all((ROOT / name).exists() or (ROOT / name).with_suffix("").is_dir() for name in expanded)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = [line.lstrip("#").strip() for line in parts(text)[0] if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pages_are_there() -> None:
    names = {path.name for path in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "design.md", "gallery.md", "NOTES.md"} <= names


# The changelog tells of files that have gone.
@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "CHANGELOG.md"], ids=lambda path: path.name)
def test_paths_exist(path: Path) -> None:
    missing = [name for name in paths_in(path.read_text()) if not exists(name) and not name.startswith("build/")]
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_lines_are_short(path: Path) -> None:
    prose, code = parts(path.read_text())
    long = [line for line in prose if len(line) > COLUMNS and not line.startswith(("|", "!["))]
    assert not long + [line for line in code if len(line) > CODE_COLUMNS]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", page("Makefile"), re.MULTILINE))
    named = {name for path in PAGES for name in re.findall(r"\bmake ([a-z][\w-]*)", quoted(path.read_text()))}
    assert named and named <= targets, named - targets
    commands = page("CONTRIBUTING.md").partition("## Layout")[0]
    public = set(re.search(r"^\.PHONY: (.*)", page("Makefile"), re.MULTILINE)[1].split()) - {"help", "clean"}
    assert all(f"`make {target}" in commands for target in public), "CONTRIBUTING.md lists every target"


def quoted(text: str) -> str:
    """What stands in backticks or in code blocks."""
    prose, code = parts(text)
    return "\n".join([*re.findall(r"`([^`]+)`", "\n".join(prose)), *code])


def test_readme_names_every_operator() -> None:
    operators = page("README.md").partition("## Operators")[2].partition("## Models")[0]
    public = {name: getattr(fastmmd, name) for name in fastmmd.__all__}
    called = [name for name, value in public.items() if inspect.isfunction(value) or inspect.isclass(value)]
    assert called and not [name for name in called if f"`{name}(" not in operators]


def test_readme_is_short() -> None:
    assert len(page("README.md").splitlines()) <= 150


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_parse_and_name_what_exists(path: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fastmmd":
                assert hasattr(fastmmd, node.attr), f"fastmmd.{node.attr}"


def test_cited_sections_exist() -> None:
    """Comments cite sections of the design as docs/design.md, "Title"."""
    sections = {line.lstrip("#").strip() for line in parts(page("docs/design.md"))[0] if line.startswith("#")}
    wrong = []
    for path in (
        path for folder in ("fastmmd", "csrc", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.*")
    ):
        if path.suffix in (".py", ".hpp", ".cpp", ".cu", ".cuh") and path != Path(__file__):
            flowing = re.sub(r"\s*\n\s*(//|#)?\s*", " ", path.read_text())
            titles = re.findall(r'docs/design\.md, "([^"]+)"', flowing)
            wrong += [f"{path.relative_to(ROOT)}: {title}" for title in titles if title not in sections]
            wrong += [f"{path.relative_to(ROOT)}: DESIGN"] * ("DESIGN" in flowing)
    assert not wrong, wrong
