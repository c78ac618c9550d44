"""make mutants SEED=n N=40: break core and families in small ways, by seed; tests must notice.

A mutant is one change of one expression, drawn from the syntax trees of src/mirada/core and
src/mirada/models. It runs in its own copy of the source tree. Not drawn: lines that word an error,
print, describe or annotate, lines or functions marked `# speed`, which choose only how fast an
equal result comes, and sizes called `tiny`, which stand for nothing outside. A mutant that no test
could kill stands once in tests/equivalent.toml, with its proof, and is drawn again.

The core is held to the fast tests; a family's file to its own parity table, to what is asked of all
families alike, and to the tables of families that import it. The pages of docs/ are made from these
files: they would notice everything and prove nothing, so they have no part in it.
"""

import argparse
import ast
import concurrent.futures
import difflib
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SELECT = "fast and not slow and not gpu"  # of the core's tests
WHOLE = "not slow and not gpu"  # of a family's
SECONDS = 60  # of processor time a mutant may take, so that a busy machine kills none
FAMILY = 300  # the same, of a family's tests, which load the reference; past it none is killed
TARGETS = ["src/mirada/core", "src/mirada/models"]
MODELS = "src/mirada/models/"
ALIKE = [f"tests/models/test_{name}.py" for name in ("defaults", "sizes", "init")]  # of all
WANTED = 95  # percent killed

OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
SYMMETRIC = {"max", "min", "maximum", "minimum", "isclose", "logical_and", "logical_or"}
SYMMETRIC |= {"transpose"}  # of two axes
DECLARING = {"key", "size"}  # of a name and a default: swapped, nothing would even import
NORMS = {"LayerNorm": "RMSNorm", "RMSNorm": "LayerNorm"}
SLOTS = {"pre": "post", "post": "pre", "out": "pre"}  # of a Residual
AXES = {"softmax", "transpose", "flatten", "unflatten", "unsqueeze", "squeeze", "sum", "mean"}
AXES |= {"cat", "stack", "chunk", "split", "unbind", "cumsum", "amax", "amin", "argmax", "flip"}
WORDING = {"print", "warn", "warnings.warn"}
DESCRIBING = {"__repr__", "extra_repr", "__str__"}


@dataclass(frozen=True, order=True)
class Mutant:
    """Bytes start to end of a file give way to `text`."""

    file: str
    start: int
    end: int
    text: str
    kind: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]


# Drawing


class Finder(ast.NodeVisitor):
    """Every mutant of one file, in the order of its syntax tree."""

    def __init__(self, file: str, source: bytes):
        self.file, self.source = file, source
        self.mutants: list[Mutant] = []
        lines = source.splitlines(keepends=True)
        self.starts = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]
        self.speed = {n for n, line in enumerate(lines, 1) if line.rstrip().endswith(b"# speed")}
        self.visit(ast.parse(source))

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def add(self, span: tuple[int, int], text: str, kind: str):
        mutant = Mutant(self.file, *span, text, kind)
        changed = mutant.apply(self.source)
        first, last = (self.source.count(b"\n", 0, place) + 1 for place in span)
        if self.speed.intersection(range(first, last + 1)):
            return
        if changed != self.source and _compiles(changed):
            self.mutants.append(mutant)

    def replace(self, node: ast.AST, text: str, kind: str):
        self.add(self.span(node), text, kind)

    def visit(self, node: ast.AST):
        if not isinstance(node, ast.Raise) and not _is_wording(node):
            super().visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef):
        for_speed = self.speed.intersection(range(node.lineno, node.body[0].lineno))
        if node.name not in DESCRIBING and not for_speed:
            for child in [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults]:
                if child is not None:
                    self.visit(child)
            for child in node.body:
                self.visit(child)

    def visit_AnnAssign(self, node: ast.AnnAssign):
        if node.value is not None:
            self.visit(node.value)

    def visit_Assert(self, node: ast.Assert):
        self.visit(node.test)

    def visit_JoinedStr(self, node: ast.JoinedStr):
        """Text made for a reader."""

    def visit_Dict(self, node: ast.Dict):
        for name, value in zip(node.keys, node.values, strict=True):
            if not isinstance(name, ast.Constant) or name.value != "tiny":
                self.visit(value)

    def visit_Tuple(self, node: ast.Tuple):
        """A row of a weight map: its operation left out, or two of its tensors exchanged."""
        row = [part for part in node.elts[:2] if _is_text(part, ".")]
        if len(row) == 2 and len(node.elts) == 3:
            start, end = self.span(node.elts[1])[1], self.span(node.elts[2])[1]
            self.add((start, end), "", "dropped operation")
        if len(row) == 2:
            text = self.text(node.elts[1])
            turned = re.sub(r"\((\w[\w.]*)\|(\w[\w.]*)", r"(\2|\1", text, count=1)
            self.replace(node.elts[1], turned, "exchanged tensors")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp):
        if not (_is_text(node.left) or _is_text(node.right)):
            self._swap(node.op, node.left, node.right)
        if isinstance(node.op, ast.Add | ast.Sub):
            self.replace(node, self._bracketed(node, node.left), "dropped term")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign):
        self._swap(node.op, node.target, node.value)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare):
        operands = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, operands, operands[1:], strict=False):
            self._swap(op, left, right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp):
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._swap(node.op, left, right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp):
        if isinstance(node.op, ast.Not):
            self.replace(node, f"({self.text(node.operand)})", "dropped not")
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return self._constant(node, -node.operand.value)
        if isinstance(node.op, ast.USub):
            self.replace(node, f"({self.text(node.operand)})", "dropped minus")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant):
        self._constant(node, node.value)

    def visit_If(self, node: ast.If | ast.IfExp):
        self.replace(node.test, f"(not ({self.text(node.test)}))", "negated condition")
        self.generic_visit(node)

    visit_IfExp = visit_If

    def visit_Call(self, node: ast.Call):
        name = ast.unparse(node.func)
        short = name.split(".")[-1]
        plain = not any(isinstance(a, ast.Starred) for a in node.args)
        if short in NORMS:
            text = f'__import__("mirada.core.norm", fromlist="*").{NORMS[short]}'
            self.replace(node.func, text, "another norm")
        for keyword in node.keywords if short == "Residual" else ():
            self._rename(keyword, SLOTS)
        if short == "Block":
            for left, right in zip(node.keywords, node.keywords[1:], strict=False):
                self._exchange(left, right, "swapped sublayers")
        if plain and short not in SYMMETRIC | DECLARING:
            for left, right in zip(node.args, node.args[1:], strict=False):
                self._exchange(left, right, "swapped arguments")
        for keyword in node.keywords:
            if keyword.arg in ("dim", "axis"):
                self._axis(keyword.value)
            if keyword.arg is not None:
                self._drop(keyword)
        if short in AXES:
            for argument in node.args:
                self._axis(argument)
        self.generic_visit(node)

    def _exchange(self, left: ast.AST, right: ast.AST, kind: str):
        between = self.source[self.span(left)[1] : self.span(right)[0]].decode()
        swapped = self.text(right) + between + self.text(left)
        self.add((self.span(left)[0], self.span(right)[1]), swapped, kind)

    def _rename(self, keyword: ast.keyword, names: dict[str, str]):
        if keyword.arg in names:
            start = self.span(keyword)[0]
            self.add((start, start + len(keyword.arg)), names[keyword.arg], "another slot")

    def _swap(self, op: ast.AST, left: ast.AST, right: ast.AST):
        """The operator stands between its operands, perhaps among brackets and line ends."""
        if type(op) not in OPERATORS:
            return
        old, new = OPERATORS[type(op)]
        start, end = self.span(left)[1], self.span(right)[0]
        between = self.source[start:end].decode()
        if "#" not in between and between.count(old) == 1:
            self.add((start, end), between.replace(old, new), f"{old} becomes {new}")

    def _bracketed(self, node: ast.BinOp, part: ast.AST) -> str:
        """The text of one term with the brackets that stand around it inside the whole."""
        start, end = self.span(node)[0], self.span(part)[1]
        text = self.source[start:end].decode()
        return text + ")" * (text.count("(") - text.count(")"))

    def _constant(self, node: ast.AST, value):
        if isinstance(value, bool):
            self.replace(node, str(not value), "flipped")
        elif isinstance(value, int):
            self.replace(node, str(value + 1), "constant + 1")
            self.replace(node, str(value - 1), "constant - 1")
        elif isinstance(value, float):
            self.replace(node, repr(value * 2 if value else 1.0), "constant doubled")

    def _axis(self, node: ast.AST):
        """Another axis than constant + 1 and - 1 reach: -1 and -2 change places, others turn."""
        try:
            value = ast.literal_eval(node)
        except ValueError:
            return
        if type(value) is int:
            self.replace(node, str({-1: -2, -2: -1}.get(value, -value - 1)), "axis")

    def _drop(self, keyword: ast.keyword):
        """A keyword argument with the comma before it, or after it where it comes first."""
        start, end = self.span(keyword)
        before = self.source[:start].rstrip()
        if before.endswith(b","):
            self.add((len(before) - 1, end), "", "dropped argument")
        else:
            rest = self.source[end:]
            comma = len(rest) - len(rest.lstrip(b" ,\n"))
            self.add((start, end + comma), "", "dropped argument")


def _compiles(source: bytes) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def _is_text(node: ast.AST, holding: str = "") -> bool:
    """A text, or a sum that has one, in which `holding` stands."""
    if isinstance(node, ast.BinOp):
        return _is_text(node.left, holding) or _is_text(node.right, holding)
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and holding in node.value


def _is_wording(node: ast.AST) -> bool:
    """A docstring, or a call that only prints or warns."""
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func) in WORDING
    return isinstance(node.value, ast.Constant)


def find_mutants(root: Path, target: str) -> list[Mutant]:
    """Every mutant of the Python files under root/target, each once, in a fixed order."""
    found: dict[bytes, Mutant] = {}
    for path in sorted((root / target).rglob("*.py")):
        file, source = path.relative_to(root).as_posix(), path.read_bytes()
        for mutant in Finder(file, source).mutants:
            found.setdefault(file.encode() + mutant.apply(source), mutant)
    return sorted(found.values())


def changed_lines(root: Path, mutant: Mutant) -> tuple[str, str]:
    """The lines that a mutant touches, before and after, as tests/equivalent.toml words them."""
    source = (root / mutant.file).read_bytes()
    first = source.rfind(b"\n", 0, mutant.start) + 1
    last = source.find(b"\n", mutant.end)
    last = len(source) if last < 0 else last
    changed = mutant.apply(source)
    before, after = source[first:last], changed[first : last + len(changed) - len(source)]
    return before.decode().strip(), after.decode().strip()


def read_equivalent(path: Path) -> list[dict]:
    """The mutants shown to change nothing: file, line, mutated, proof."""
    return tomllib.loads(path.read_text()).get("equivalent", []) if path.exists() else []


def is_equivalent(root: Path, mutant: Mutant, entries: list[dict]) -> bool:
    before, after = changed_lines(root, mutant)
    return any(
        mutant.file.endswith(entry["file"])
        and (entry["line"].strip(), entry["mutated"].strip()) == (before, after)
        for entry in entries
    )


def draw(root: Path, target: str, seed: int, count: int, entries: list[dict]) -> list[Mutant]:
    """The first `count` mutants of the seed's order; equivalent ones are passed over."""
    mutants = find_mutants(root, target)
    random.Random(seed).shuffle(mutants)
    drawn: list[Mutant] = []
    for mutant in mutants:
        if len(drawn) == count:
            break
        if not is_equivalent(root, mutant, entries):
            drawn.append(mutant)
    return drawn


def diff(root: Path, mutant: Mutant) -> str:
    source = (root / mutant.file).read_bytes()
    lines = [text.decode().splitlines() for text in (source, mutant.apply(source))]
    return "\n".join(difflib.unified_diff(*lines, mutant.file, mutant.kind, lineterm="", n=1))


# Running


def copy_tree(root: Path, place: Path):
    """What the tests need of the project, without anything built."""
    ignore = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in ("src", "tests", "tools"):
        if (root / name).is_dir():
            shutil.copytree(root / name, place / name, ignore=ignore)
    for path in root.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, place)


# The tests of a family


def imports_of(path: Path) -> set[str]:
    """Names of modules under mirada.models that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module == "mirada.models":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mirada.models."):
            found.add(node.module.split(".")[2])
    return found


def standing_on(root: Path, name: str) -> set[str]:
    """The modules of models/ that import `name`, themselves or by another."""
    uses = {path.stem: imports_of(path) for path in (root / MODELS).glob("*.py")}
    found: set[str] = set()
    while more := {m for m, used in uses.items() if used & {name, *found}} - found:
        found |= more
    return found - {name}


def family_runs(root: Path, file: str) -> list[list[str]]:
    """pytest's arguments for what a file of models/ is held to, the nearest tests first."""
    name = Path(file).stem
    above = standing_on(root, name)
    tests = {path.relative_to(root).as_posix(): path.stem for folder in ("parity", "models")
             for path in sorted((root / "tests" / folder).glob("test_*.py"))}
    own = [path for path, stem in tests.items()
           if f"{stem}_".startswith(f"test_{name}_") or name in imports_of(root / path)]
    far = [path for path, stem in tests.items()
           if stem.removeprefix("test_") in above and path not in own]
    if not own + far:  # the registry alone imports it: readers of files
        own = [path for path in tests if path.startswith("tests/models/")]
    types = {t for t, home in _families(root).items() if home in {name, *above}}
    words = sorted({name, *above, *types, *(tests[path] for path in own)})
    near = ["-k", " or ".join(words), *ALIKE, *(path for path in own if path not in ALIKE)]
    return [near, far] if far else [near]


def _families(root: Path) -> dict[str, str]:
    """FAMILIES of models/__init__.py, which is not imported: it may be the one that is broken."""
    for node in ast.parse((root / MODELS / "__init__.py").read_bytes()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FAMILIES":
            return ast.literal_eval(node.value)
    return {}


def pytest_in(place: Path, arguments: list[str], seconds: int) -> subprocess.CompletedProcess:
    """Run pytest on a copy, whose src comes before the installed package.

    seconds: of processor time; past it the shell's limit ends the run. Raises
    subprocess.TimeoutExpired where it sleeps ten times as long.
    """
    environment = {**os.environ, "PYTHONPATH": str(place / "src"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    limited = ["sh", "-c", 'ulimit -t "$0" && exec "$@"', str(seconds), sys.executable]
    return subprocess.run(
        [*limited, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=10 * seconds,
    )


def stages(root: Path, select: str) -> tuple[list[list[str]], float]:
    """The files of the fast subset, quickest first, in the two runs that a mutant goes through.

    The core's own tests come first: they load no reference library, and most mutants die there.
    Raises SystemExit where the unbroken source does not pass, or takes most of a mutant's time:
    then a kill would show nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        copy_tree(root, place)
        begin = _children()
        timed = ["-m", select, "--durations=0", "--durations-min=0"]
        run = pytest_in(place, timed, 4 * SECONDS)
        spent = _children() - begin
    if run.returncode != 0:
        raise SystemExit(f"the fast tests fail before anything is broken:\n{run.stdout[-3000:]}")
    if spent > 0.8 * SECONDS:
        raise SystemExit(f"the fast tests take {spent:.0f} s; a mutant may take {SECONDS} s.")
    cost: dict[str, float] = {}
    for line in run.stdout.splitlines():
        parts = line.split()
        if len(parts) >= 3 and parts[1] in ("setup", "call", "teardown"):
            file = parts[2].split("::")[0]
            cost[file] = cost.get(file, 0.0) + float(parts[0].rstrip("s"))
    ordered = sorted(cost, key=lambda file: cost[file])
    first = [file for file in ordered if file.startswith("tests/core/")]
    rest = [file for file in ordered if file not in first]
    return [stage for stage in (first, rest) if stage], spent


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check_killers(root: Path, verdicts: list[str]):
    """Raise SystemExit where a test that is said to have noticed fails on the unbroken source."""
    noticed = (re.match(r"killed \(FAILED (tests/\S+?::.+?)(?: - .*)?\)$", v) for v in verdicts)
    found = {match[1] for match in noticed if match}
    if not found:
        return
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(root, Path(folder))
        run = pytest_in(Path(folder), ["-m", WHOLE, *sorted(found)], FAMILY + 10 * len(found))
    if run.returncode != 0:
        raise SystemExit(f"tests fail with nothing broken, so they show nothing:\n"
                         f"{run.stdout[-3000:]}")
    print(f"the {len(found)} tests that noticed pass where nothing is broken", flush=True)


def judge(root: Path, mutant: Mutant, runs: list[list[str]], select: str,
          seconds: int = SECONDS) -> str:
    """What became of a mutant: `survived`, or `killed` with the test that noticed."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        copy_tree(root, place)
        path = place / mutant.file
        path.write_bytes(mutant.apply(path.read_bytes()))
        for files in runs:
            try:
                run = pytest_in(place, ["-m", select, *files], seconds)
            except subprocess.TimeoutExpired:
                return "killed (it never ended)"
            if run.returncode < 0 and seconds == FAMILY:
                return f"survived (out of its {seconds} s, or crashed: signal {-run.returncode})"
            if run.returncode < 0:
                return f"killed (out of its {seconds} s, or crashed: signal {-run.returncode})"
            if run.returncode == 5:
                raise SystemExit(f"no test was run:\n{run.stdout[-2000:]}")
            if run.returncode != 0:
                failed = [x for x in run.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
                return f"killed ({failed[0][:400] if failed else 'at collection'})"
    return "survived"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn")
    parser.add_argument("--count", type=int, default=40, help="how many")
    parser.add_argument("--workers", type=int, default=2, help="how many at a time")
    parser.add_argument("--list", action="store_true", help="show the draws, run nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project")
    parser.add_argument("--target", action="append", help="what is broken: core and models")
    parser.add_argument("--select", default=SELECT, help="the tests, as pytest's -m")
    options = parser.parse_args(arguments)

    root = options.root.resolve()
    entries = read_equivalent(root / "tests" / "equivalent.toml")
    drawn = []
    for n, target in enumerate(targets := options.target or TARGETS):
        share = options.count * (n + 1) // len(targets) - options.count * n // len(targets)
        drawn += draw(root, target, options.seed, share, entries)
    if options.list:
        print("\n".join(diff(root, mutant) for mutant in drawn))
        return 0
    families = {mutant.file for mutant in drawn if mutant.file.startswith(MODELS)}
    runs: list[list[str]] = []
    if len(families) < len({mutant.file for mutant in drawn}):
        runs, spent = stages(root, options.select)
        print(f"unbroken: {sum(map(len, runs))} files in {spent:.0f} s of processor time",
              flush=True)
    def verdict_on(mutant: Mutant) -> str:
        if mutant.file in families:
            return judge(root, mutant, family_runs(root, mutant.file), WHOLE, FAMILY)
        return judge(root, mutant, runs, options.select)

    killed, said = 0, []
    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        verdicts = pool.map(verdict_on, drawn)
        for mutant, verdict in zip(drawn, verdicts, strict=True):
            killed += not verdict.startswith("survived")
            said += [verdict] if mutant.file in families else []
            print(f"{diff(root, mutant)}\n{verdict}\n", flush=True)
    check_killers(root, said)
    share = 100 * killed / max(len(drawn), 1)
    print(f"mutants: {killed}/{len(drawn)} killed ({share:.0f} %)")
    return 0 if drawn and share >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
