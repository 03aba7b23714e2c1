"""The audit lists what is installed, and is no success where it could not ask."""

from __future__ import annotations

import sys
from pathlib import Path

import audit
import pytest
import torch


def test_packages_have_versions_and_licenses() -> None:
    found = {name: (version, said) for name, version, said in audit.packages()}
    assert found["torch"][0] == torch.__version__
    assert "BSD" in found["torch"][1] and found["hypothesis"][1] != "not stated"


def test_without_the_database_it_fails_and_says_so(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert audit.main(["unused"], (tmp_path / "nothing").as_uri()) == 1
    out = capfd.readouterr().out
    assert "NOT compared with known vulnerabilities" in out and "torch" in out


@pytest.mark.parametrize("code", [0, 1])
def test_the_answer_of_pip_audit_counts(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    python = sys.executable
    monkeypatch.setattr(audit, "unreachable", lambda address: None)
    given = "import sys; assert sys.argv[1] == '--path'; raise SystemExit"
    monkeypatch.setattr(audit.sys, "executable", "true")  # in the place of pip check, which takes seconds
    assert audit.main([python, "-c", f"{given}({code})"]) == code
