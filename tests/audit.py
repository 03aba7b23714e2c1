"""The audit of installed packages: `make audit`.

What needs no network comes first: that the packages fit each other (pip check), and which they are, with versions and
licenses. Then pip-audit compares the versions with the known vulnerabilities of the Python Packaging Advisory Database,
which it asks at https://pypi.org. Where that does not answer, nothing is known, and the audit fails and says so.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path

DATABASE = "https://pypi.org/pypi/pip/24.0/json"  # what pip-audit asks, of one release


def packages() -> list[tuple[str, str, str]]:
    """Name, version and license of every installed package, by name."""
    found = {}
    for package in metadata.distributions():
        about = package.metadata
        classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if "License ::" in line]
        text = (about.get("License") or "").strip().partition("\n")[0]
        said = about.get("License-Expression") or ", ".join(classifiers) or text or "not stated"
        found[about["Name"].lower()] = (about["Name"], package.version, said)
    return [found[name] for name in sorted(found)]


def unreachable(address: str, seconds: float = 10) -> str | None:
    """Why the database does not answer; None if it does."""
    try:
        with urllib.request.urlopen(address, timeout=seconds) as answer:
            return None if answer.status == 200 else f"HTTP {answer.status}"
    except (OSError, ValueError) as error:
        return str(error)


def main(pip_audit: list[str], database: str = DATABASE) -> int:
    """The exit code: 0 only if the packages fit and none has a known vulnerability."""
    print("packages installed: name, version, license")
    for package in packages():
        print("  {:28} {:18} {}".format(*package))
    fits = subprocess.run([sys.executable, "-m", "pip", "check"]).returncode
    if reason := unreachable(database):
        print(f"NOT compared with known vulnerabilities: {database} does not answer ({reason}); try with a network")
        return 1
    environment = Path(metadata.distribution("pip").locate_file(""))
    return subprocess.run([*pip_audit, "--path", str(environment), "--skip-editable"]).returncode or fits


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
