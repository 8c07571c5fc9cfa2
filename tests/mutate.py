"""Asks whether the tests would notice wrong code: changes one thing at a time, and runs the tests (``make mutate``).

Each mutant is tested in a copy of the checkout, because tests start programs that import the code: a mutant must be a
real file, in constants, too. No maintained tool that we looked at does this (mutmut changes functions within its own
process; cosmic-ray and poodle neither delete statements nor draw samples).

The tests are first the module's own, ``tests/…/test_NAME*.py``, then the others in the same folder. A mutant is
detected if a test fails or does not end. The report lists those that survive: each is a hole in the tests, or changes
nothing that matters.
"""

import argparse
import ast
import contextlib
import copy
import itertools
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Code = ast.expr | ast.stmt
Node = TypeVar("Node", ast.expr, ast.AugAssign)

REPOSITORY = Path(__file__).resolve().parents[1]
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitOr,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change of one expression or statement of a module.

    Attributes:
        module: The module's path in the checkout.
        line: The line of the change.
        original: The code that is changed.
        changed: What it is changed to.
        source: The whole module with the change.
    """

    module: str
    line: int
    original: str
    changed: str
    source: str


def main() -> int:
    """Run the command line. Returns the exit code: 0 if no mutant survives, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", required=True, help="files and folders, such as service/isolation")
    parser.add_argument("--sample", type=int, default=20, help="mutants of each module (default: 20; 0: all)")
    parser.add_argument("--seed", type=int, default=1, help="draws the sample (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants that are tested at a time (default: 2)")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tester = Tester(options.root, Path(folder), options.jobs)
        survived = [tester.report(module, options.sample, options.seed) for module in modules(options)]
    say(f"\n{sum(survived)} mutants survived")
    return int(any(survived))


def modules(options: argparse.Namespace) -> Iterator[str]:
    """Yield the modules that the command line names, as paths in the checkout."""
    for path in (options.root / name for name in options.modules):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if file.name != "__init__.py":
                yield file.relative_to(options.root).as_posix()


class Tester:
    """Tests mutants in copies of a checkout.

    Args:
        root: The checkout, which is not changed.
        folder: Where the copies are made.
        jobs: Number of copies, each of which tests one mutant at a time.
    """

    def __init__(self, root: Path, folder: Path, jobs: int) -> None:
        self._root = root
        self._jobs = jobs
        self._copies: queue.Queue[Path] = queue.Queue()
        listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, text=True)
        for number in range(jobs):
            for name in filter(lambda name: (root / name).is_file(), listed.splitlines()):
                target = folder / str(number) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / name, target)
            self._copies.put(folder / str(number))

    def report(self, module: str, sample: int, seed: int) -> int:
        """Test a sample of a module's mutants and print those that survive. Returns their number."""
        source = (self._root / module).read_text(encoding="utf-8")
        drawn = list(mutants(module, source))
        if 0 < sample < len(drawn):
            drawn = sorted(random.Random(seed).sample(drawn, sample), key=lambda mutant: mutant.line)
        stages = list(filter(None, tests_of(self._root, module)))
        started = time.monotonic()
        if not stages or self._detects(Mutant(module, 0, "", "", source), stages, 3600):
            sys.exit(f"{module} has no tests, or they fail without a change")
        timeout_s = 60 + 3 * (time.monotonic() - started)
        say(f"\n{module}: {len(drawn)} mutants")
        survived = 0
        with ThreadPoolExecutor(self._jobs) as pool:
            detected = pool.map(lambda mutant: self._detects(mutant, stages, timeout_s), drawn)
            for mutant, found in zip(drawn, detected, strict=True):
                if not found:
                    survived += 1
                    say(f"- {module}:{mutant.line}: `{mutant.original}` → `{mutant.changed}`")
        return survived

    def _detects(self, mutant: Mutant, stages: list[list[str]], timeout_s: float) -> bool:
        """Return whether a test fails on a mutant, or does not end."""
        checkout = self._copies.get()
        file = checkout / mutant.module
        original = file.read_bytes()
        try:
            file.write_text(mutant.source, encoding="utf-8")
            return any(not passes(checkout, tests, timeout_s) for tests in stages)
        finally:
            file.write_bytes(original)
            self._copies.put(checkout)


def passes(checkout: Path, tests: list[str], timeout_s: float) -> bool:
    """Run tests in a checkout. Returns whether all pass within the time limit."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    # Without byte code: it could be that of another mutant, as old and as long as this one.
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command,
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(timeout_s) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return False


def tests_of(root: Path, module: str) -> tuple[list[str], list[str]]:
    """Return a module's own test files, and the others in their folder."""
    path = Path("tests", module)
    files = [path.parent / file.name for file in sorted((root / path.parent).glob("test_*.py"))]
    own = [file for file in files if file.stem.startswith(f"test_{path.stem}")]
    return list(map(str, own)), [str(file) for file in files if file not in own]


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    encoded = source.encode()
    starts = [0, *itertools.accumulate(map(len, encoded.splitlines(keepends=True)))]  # of each line
    for node, changed in itertools.chain.from_iterable(map(changes, code_of(ast.parse(source)))):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        text = ast.unparse(changed)
        # In parentheses neither precedence nor line breaks change an expression's meaning.
        inserted = f"({text})" if isinstance(changed, ast.expr) else text
        mutated = (encoded[:start] + inserted.encode() + encoded[end:]).decode()
        with contextlib.suppress(SyntaxError):  # a constant in a pattern, for example, takes no parentheses
            compile(mutated, module, "exec")
            yield Mutant(module, node.lineno, shorten(ast.unparse(node)), shorten(text), mutated)


def code_of(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a module, without annotations, decorators, docstrings and f-strings."""
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            match child:
                case ast.JoinedStr() | ast.Expr(ast.Constant()):
                    pass
                case ast.AST():
                    yield child
                    yield from code_of(child)


def changes(node: ast.AST) -> Iterator[tuple[Code, Code]]:
    """Yield what may be changed at a node: the node or a part of it, and what takes its place."""
    match node:
        case ast.If(test) | ast.IfExp(test) | ast.While(test):
            yield test, ast.Constant(True)
            yield test, ast.Constant(False)
        case ast.comprehension(ifs=tests):
            yield from ((test, ast.Constant(True)) for test in tests)
        case ast.Return(ast.expr()):
            yield node, ast.Return(ast.Constant(None))
        case ast.Break():
            yield node, ast.Continue()
        case ast.Continue():
            yield node, ast.Break()
        case ast.expr():
            yield from ((node, other) for other in other_expressions(node))
    if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield node, replace(node, op=OPERATORS[type(node.op)]())
    if isinstance(node, ast.Raise | ast.Delete | ast.AugAssign | ast.Expr):
        yield node, ast.Pass()


def other_expressions(node: ast.expr) -> Iterator[ast.expr]:
    """Yield expressions that may take the place of one."""
    match node:
        case ast.Constant(value):
            yield from map(ast.Constant, other_values(value))
        case ast.Compare(ops=operators):
            for index, operator in enumerate(operators):
                yield replace(node, ops=[*operators[:index], OPERATORS[type(operator)](), *operators[index + 1 :]])
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) if type(operator) in OPERATORS:
            yield replace(node, op=OPERATORS[type(operator)]())
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Name(name) if name in FUNCTIONS:
            yield ast.Name(FUNCTIONS[name])
        case ast.Call(keywords=keywords):
            for keyword in keywords:
                yield replace(node, keywords=[other for other in keywords if other is not keyword])


def other_values(value: object) -> Iterator[str | bytes | bool | int | float]:
    """Yield another value for a constant, unless it is prose."""
    match value:
        case bool():
            yield not value
        case int():
            yield value + 1
        case float():
            yield 1.25 * value
        case bytes():
            yield b"XX" + value
        case str() if value and not any(map(str.isspace, value)):
            yield f"XX{value}"


def replace(node: Node, **fields: object) -> Node:
    """Return a copy of a node with other fields."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def shorten(code: str) -> str:
    """Return the first line of code, at most 200 characters of it."""
    line = code.partition("\n")[0]
    return line if len(line) <= 200 else f"{line[:199]}…"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
