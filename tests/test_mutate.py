import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.mutate import mutants

TINY = '''"""Has two holes in its tests."""


def is_positive(number: int) -> bool:
    return number > 0
'''
TESTS = """
from service.tiny import is_positive

def test_signs():
    assert is_positive(7) is True
    assert is_positive(-7) is False
"""


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_mutants_that_no_test_notices_are_reported_and_the_checkout_is_not_changed(tmp_path: Path) -> None:
    module, tests = tmp_path / "service/tiny.py", tmp_path / "tests/service/test_tiny.py"
    for file, text in ((module, TINY), (module.with_name("__init__.py"), ""), (tests, TESTS)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    command = [sys.executable, "-m", "tests.mutate", f"--root={tmp_path}", "--modules", "service"]
    # Without plugins, which take longer to load than these tests.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)

    assert ended.stdout.splitlines() == [
        "",
        "service/tiny.py: 3 mutants",
        "- service/tiny.py:5: `number > 0` → `number >= 0`",
        "- service/tiny.py:5: `0` → `1`",
        "",
        "2 mutants survived",
    ]
    assert (ended.stderr, ended.returncode) == ("", 1)
    assert module.read_text(encoding="utf-8") == TINY


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("x = a and not b", ["a or not b", "b"]),
        ("x = a < b <= c", ["a <= b <= c", "a < b < c"]),
        ("x = a % b + c // d", ["a % b - c // d", "a * b", "c * d"]),
        ("x = min(a, key=b)", ["min(a)", "max"]),
        ("x = [a for a in b if c]", ["True"]),
        ("x = a if b else c", ["True", "False"]),
        ("x = (1, 2.0, True, 'é', b'c', None, 'some prose')", ["2", "2.5", "False", "'XXé'", "b'XXc'"]),
        ("a += 1", ["a -= 1", "pass", "2"]),
        ("del a", ["pass"]),
        ("raise a", ["pass"]),
        ("def f() -> 1:\n    '''Prose'''\n    return a", ["return None"]),
        ("while a:\n    break", ["True", "False", "continue"]),
        ("a: 1 = f'{b + c}'", []),
    ],
)
def test_one_thing_is_changed_at_a_time(code: str, changes: list[str]) -> None:
    found = list(mutants("module.py", f"'é'\n{code}\n"))

    assert [mutant.changed for mutant in found] == changes
    assert len({mutant.source for mutant in found}) == len(found)
