"""After the tests: does each module's own test module cover it, without help from the others?

``trio_bytetalk/_x.py`` belongs to ``tests/test_x.py``, and ``trio_bytetalk/_p/x.py`` to
``tests/test_p_x.py``. The tests must have been run with ``--cov``; ``conftest.py`` has it noted for
each line and branch which of the test modules went there. What runs at import, such as ``def``
itself, belongs to none of them and counts for all.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import coverage

ROOT = Path(__file__).parent.parent


def main() -> int:
    measured = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"))
    measured.load()
    package = ROOT / "trio_bytetalk"
    modules = sorted(package.rglob("*.py"))
    incomplete = 0
    for module in modules:
        path = module.relative_to(package).with_suffix("").parts
        tests = f"tests/test_{'_'.join(name.strip('_') for name in path)}.py"
        report = io.StringIO()
        covered = measured.report(
            file=report,
            include=[str(module)],
            contexts=["^$", f"^{re.escape(tests)}$"],
            show_missing=True,
            skip_covered=False,
        )
        if covered < 100:
            incomplete += 1
            print(f"{tests} alone leaves a part of its module out:\n{report.getvalue()}")
    if not incomplete:
        print(f"each of {len(modules)} modules is covered by its own tests")
    return 1 if incomplete else 0


if __name__ == "__main__":
    sys.exit(main())
