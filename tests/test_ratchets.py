"""Ratchets: what tests/ratchets.toml allows, read from the source's syntax tree. No clocks."""

import ast
import functools
import graphlib
import json
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "src" / "mirada"
LIMITS = tomllib.loads((ROOT / "tests" / "ratchets.toml").read_text())
FILES = sorted(HOUSE.rglob("*.py"))
FAMILIES = [p for p in FILES if p.parent.name == "models" and p.name != "__init__.py"]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (*FUNCTION, ast.ClassDef, ast.Module)
HOST = re.compile(r"https?://[^\s\"'<>)]*|\b(?:www\.)?[\w-]+\.(?:com|net|org|co)\b(?![\w(])")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def room_of(path: Path) -> str:
    """The folder directly under the package, or the name of a file that stands beside them."""
    parts = path.relative_to(HOUSE).parts
    return parts[0] if len(parts) > 1 else path.stem


def lines_of(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_text().splitlines())


def core_files() -> list[Path]:
    return [path for path in FILES if room_of(path) == "core"]


# Sizes


def lines_by_room() -> dict[str, int]:
    lines: dict[str, int] = {}
    for path in FILES:
        room = room_of(path) if path.parent != HOUSE else "mirada"
        lines[room] = lines.get(room, 0) + lines_of(path)
    return lines


def test_lines_of_each_room():
    found = lines_by_room()
    assert found.keys() <= LIMITS["lines"].keys(), "give the new room a budget"
    over = {r: n for r, n in found.items() if n > LIMITS["lines"][r]}
    assert not over, f"lines over budget: {over}"


def test_lines_of_each_family():
    lines = {path.stem: lines_of(path) for path in FAMILIES}
    over = {name: n for name, n in lines.items() if n > LIMITS["models"]["longest"]}
    assert not over, f"a family is one short file: {over}"
    assert not lines or statistics.median(lines.values()) <= LIMITS["models"]["median"], lines


def columns_over(text: str, limit: int = 100) -> list[int]:
    return [n for n, line in enumerate(text.splitlines(), 1) if len(line) > limit]


def test_columns():
    folders = (ROOT / "src", ROOT / "tests", ROOT / "tools")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    over = {str(p.relative_to(ROOT)): columns_over(p.read_text()) for p in files}
    assert not {name: lines for name, lines in over.items() if lines}


def long_functions(tree: ast.AST, limit: int) -> dict[str, int]:
    lengths = {n: n.end_lineno - n.lineno + 1 for n in ast.walk(tree) if isinstance(n, FUNCTION)}
    return {f"{n.name}:{n.lineno}": length for n, length in lengths.items() if length > limit}


def test_functions_of_core():
    limit = LIMITS["core"]["function_lines"]
    over = {path.name: long_functions(tree_of(path), limit) for path in core_files()}
    assert not {name: functions for name, functions in over.items() if functions}


def branches(function: ast.AST) -> int:
    """`if`, `elif` and the ternary; a loop is no branch."""
    return sum(isinstance(node, ast.If | ast.IfExp) for node in ast.walk(function))


def branchy_forwards(tree: ast.AST, limit: int) -> dict[str, int]:
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, FUNCTION) and inner.name == "forward":
                    found[node.name] = branches(inner)
    return {name: n for name, n in found.items() if n > limit}


def test_branches_of_each_forward():
    limit = LIMITS["core"]["forward_branches"]
    over = {path.name: branchy_forwards(tree_of(path), limit) for path in core_files()}
    assert not {name: forwards for name, forwards in over.items() if forwards}


def config_fields(tree: ast.AST) -> int:
    configs = (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and "Config" in n.name)
    return sum(isinstance(line, ast.AnnAssign) for config in configs for line in config.body)


def test_fields_of_each_config():
    counts = {path.stem: config_fields(tree_of(path)) for path in FAMILIES}
    found = {name: n for name, n in counts.items() if n}
    unknown = {name: n for name, n in found.items() if name not in LIMITS["fields"]}
    assert not unknown, f"record the new family under [fields]: {unknown}"
    over = {name: n for name, n in found.items() if n > LIMITS["fields"][name]}
    assert not over, f"more fields than recorded: {over}"


# Arrows


def imports(tree: ast.AST, package: list[str]) -> list[tuple[str, ast.AST]]:
    """Every module that the tree imports, in functions too, as a full dotted name."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from mirada import look` may name a room; `from mirada.look import f` does not
            found += [(f"{base}.{alias.name}", node) for alias in node.names]
    return found


def rooms_imported(path: Path, tree: ast.AST) -> set[str]:
    package = ["mirada", *path.relative_to(HOUSE).parts[:-1]]
    lazy = _inside_methods(tree) if path == HOUSE / "model.py" else set()
    rooms = set()
    for name, node in imports(tree, package):
        top, *rest = name.split(".")
        if top == "mirada" and node not in lazy:
            is_room = rest and _is_room(rest[0])
            rooms.add(rest[0] if is_room else "mirada")
    return rooms - {room_of(path), "errors"}


def _is_room(name: str) -> bool:
    return (HOUSE / name).is_dir() or (HOUSE / f"{name}.py").is_file()


def _inside_methods(tree: ast.AST) -> set[ast.AST]:
    """The one exception: what Model's methods need, they import when they are called."""
    methods = (
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for inner in node.body
        if isinstance(inner, FUNCTION)
    )
    return {node for method in methods for node in ast.walk(method)}


def test_imports_point_one_way():
    wrong = []
    for path in FILES:
        room = room_of(path)
        if room in ("__init__", "__main__", "errors"):
            continue
        assert room in LIMITS["arrows"], f"{room} is a new room: say what it may import"
        for target in rooms_imported(path, tree_of(path)) - set(LIMITS["arrows"][room]):
            wrong.append(f"{path.relative_to(HOUSE)} imports {target}")
    assert not wrong, wrong


def test_arrows_make_no_circle():
    tuple(graphlib.TopologicalSorter(LIMITS["arrows"]).static_order())


def test_errors_imports_nothing():
    assert not imports(tree_of(HOUSE / "errors.py"), ["mirada"])


def test_core_needs_only_torch():
    allowed = {*sys.stdlib_module_names, *LIMITS["core"]["packages"], "mirada"}
    for path in core_files():
        tops = {name.split(".")[0] for name, _ in imports(tree_of(path), ["mirada", "core"])}
        assert tops <= allowed, (path.name, tops - allowed)


# Names


@pytest.fixture(scope="module")
def fresh() -> dict:
    """What `import mirada` gives and loads in an interpreter that has done nothing else."""
    code = (
        "import sys; before = set(sys.modules); import mirada; new = set(sys.modules) - before\n"
        "names = {n for n in dir(mirada) if n[0] != '_'} | set(getattr(mirada, '__all__', ()))\n"
        "import json; print(json.dumps([sorted(names), sorted(new)]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, modules = json.loads(run.stdout)
    return {"names": names, "modules": modules}


def test_public_names(fresh):
    assert fresh["names"] == sorted(LIMITS["public"]["names"])


def test_importing_mirada_is_cheap(fresh):
    loaded = fresh["modules"]
    assert len(loaded) <= LIMITS["public"]["modules"], loaded
    assert not {name.split(".")[0] for name in loaded} & set(LIMITS["public"]["unloaded"])


def test_no_module_hides_a_public_function():
    """Importing mirada/verify.py would put the module where the function `verify` stands."""
    modules = {room_of(path) for path in FILES} - set(LIMITS["public"]["rooms"])
    assert not modules & set(LIMITS["public"]["names"])


def words(identifier: str) -> set[str]:
    """The words of an identifier or text, split at underscores and capitals, digits kept or not."""
    parts = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*", identifier)
    return {w for part in parts for w in (part, part.rstrip("0123456789"))}


def docstrings(tree: ast.AST) -> set[ast.AST]:
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, DOCUMENTED) and node.body]
    first = {body[0].value for body in bodies if isinstance(body[0], ast.Expr)}
    return {node for node in first if isinstance(node, ast.Constant)}


def identifiers(tree: ast.AST):
    """Every name and every string that is not a docstring, with its line."""
    skipped = docstrings(tree)
    fields = ("id", "attr", "name", "arg", "asname", "module", "value")
    for node in ast.walk(tree):
        if node not in skipped:
            for text in (getattr(node, field, None) for field in fields):
                if isinstance(text, str):
                    yield text, getattr(node, "lineno", 0)


def model_names(tree: ast.AST, names: list[str]) -> list[tuple[str, int]]:
    found = []
    for text, line in identifiers(tree):
        parts = words(text)
        joined = re.sub(r"[^a-z0-9]", "", text.lower())
        lowered = {w.lower() for w in parts} | {joined}
        if any(n in (parts if n != n.lower() else lowered) for n in names):
            found.append((text, line))
    return found


def test_core_knows_no_model():
    names = LIMITS["names"]["models"]
    found = {path.name: model_names(tree_of(path), names) for path in core_files()}
    assert not {name: hits for name, hits in found.items() if hits}


# Trust


def dotted(node: ast.AST) -> str:
    """`torch.jit.load` of its attribute node; empty where it is not a plain dotted name."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def distrusted(tree: ast.AST, name: str) -> list[str]:
    """What could run code from a file: unpickling, eval, exec, a shell, a bare torch.load."""
    trust, found = LIMITS["trust"], []
    for module, node in imports(tree, ["mirada", "x"]):
        if module.split(".")[0] in trust["modules"]:
            found.append(f"{node.lineno}: import {module}")
        found += [f"{node.lineno}: {a}" for a in trust["attributes"] if module == a]
        if module == "torch.load":
            found.append(f"{node.lineno}: torch.load under another name")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node) in trust["attributes"]:
            found.append(f"{node.lineno}: {dotted(node)}")
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {problem}" for problem in _call_problems(node, name)]
    return found


def _call_problems(call: ast.Call, name: str):
    called = dotted(call.func).removeprefix("builtins.")
    flags = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    if called in LIMITS["trust"]["calls"]:
        yield called
    if called.split(".")[-1] == "import_module" and name not in LIMITS["trust"]["import_module"]:
        yield "import_module"
    if called == "torch.load" and name != LIMITS["trust"]["torch_load"]:
        yield "torch.load outside its one file"
    if called == "torch.load" and flags.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if flags.get("allow_pickle") is True or flags.get("shell") is True:
        yield "allow_pickle or shell"
    if flags.get("trust_remote_code") is True:
        yield "trust_remote_code"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_nothing_runs_code_from_data(path):
    assert not distrusted(tree_of(path), path.relative_to(HOUSE).as_posix())


def hosts(text: str) -> list[str]:
    return [h for h in HOST.findall(text) if h not in LIMITS["trust"]["hosts"]]


def test_source_names_no_host():
    texts = [p for p in HOUSE.rglob("*") if p.is_file() and p.suffix not in (".pyc", ".so")]
    found = {path.name: hosts(path.read_text(errors="replace")) for path in texts}
    assert not {name: hits for name, hits in found.items() if hits}


# The ratchets themselves: each finds what it is for


def test_each_ratchet_can_fail():
    names = LIMITS["names"]["models"]
    branchy = "class A:\n def forward(s, x):\n  if x:\n   pass\n  return 1 if x else 2 if s else 3"
    assert branchy_forwards(ast.parse(branchy), 2) == {"A": 3}
    assert long_functions(ast.parse("def f():\n\n\n    pass"), 3) == {"f:1": 4}
    assert columns_over("a\n" + "b" * 101) == [2]
    assert config_fields(ast.parse("class Config:\n a: int\n b: int = 2\n c = 3")) == 2
    for text in ("class GPTNeoXBlock: pass", "x = 'bert'", "m.t5_bias", "f(llama3=1)", "CLIP"):
        assert model_names(ast.parse(text), names), text
    for text in ("'''bert'''", "x.clip(0)", "rope = bucket(vital)", "# llama", "activity = 1"):
        assert not model_names(ast.parse(text), names), text


def test_arrows_can_fail(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "_is_room", {"core", "look"}.__contains__)
    core, model = HOUSE / "core" / "x.py", HOUSE / "model.py"
    arrows = "from ..look import tape", "def f():\n import mirada.look.tape", "from .. import look"
    for text in arrows:
        assert rooms_imported(core, ast.parse(text)) == {"look"}, text
    assert rooms_imported(core, ast.parse("from .mask import Mask\nimport torch")) == set()
    assert rooms_imported(core, ast.parse("import mirada")) == {"mirada"}
    inside = "class Model:\n def record(self):\n  from mirada.look import tape"
    assert rooms_imported(model, ast.parse(inside)) == set()
    assert rooms_imported(model, ast.parse("from mirada.look import tape")) == {"look"}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "import builtins; builtins.exec(x)",
        "__import__(name)",
        "torch.load(f, weights_only=True)",
        "from torch import load",
        "os.system(x)",
        "subprocess.run(x, shell=True)",
        "np.load(f, allow_pickle=True)",
        "importlib.import_module(name)",
    ],
)
def test_trust_can_fail(text):
    assert distrusted(ast.parse(text), "weights/gguf.py")


def test_trust_allows_what_is_safe():
    one = LIMITS["trust"]["torch_load"]
    assert not distrusted(ast.parse("torch.load(f, weights_only=True)"), one)
    assert distrusted(ast.parse("torch.load(f, weights_only=False)"), one)
    assert distrusted(ast.parse("torch.load(f)"), one)
    assert not distrusted(ast.parse("model.eval(); re.compile(x); torch.compile(m)"), "model.py")
    assert len(hosts("see http://example.org/x and models.co")) == 2
    assert not hosts("self.cols, x.cos(y), arXiv:1706.03762")
