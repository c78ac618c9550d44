"""make scope and make mutants, each on a small project written here; and proven.json is fresh."""

import json
import tomllib
from pathlib import Path

import pytest

from tools import mutants, scope

ROOT = Path(__file__).parent.parent
PYPROJECT = """
[tool.pytest.ini_options]
addopts = "--import-mode=importlib --strict-markers -m 'not slow'"
markers = ["slow", "gpu", "fast", "scope(*rows)", "parity(family, architecture)"]
"""


# The checklist


def test_table_has_every_row():
    table = scope.read_table(ROOT / "tests" / "scope.toml")
    rows = [row for section in table for row in section["rows"]]
    assert (len(table), len(rows), len(set(rows))) == (19, 184, 184)
    for number, section in enumerate(table, 1):
        assert section["id"] == f"1.{number}"
        expected = [f"1.{number}.{n}" for n in range(1, len(section["rows"]) + 1)]
        assert list(section["rows"]) == expected


def test_proven_is_not_stale():
    """Where this fails, `make scope` writes the file anew."""
    report = scope.run_marked(ROOT, ["--collect-only"], {})
    assert not report["broken"], report["output"]
    proven = json.loads((ROOT / "src" / "mirada" / "proven.json").read_text())
    table = scope.read_table(ROOT / "tests" / "scope.toml")
    assert not scope.stale(proven, report["tests"], table)


TABLE = """
[[section]]
id = "1.1"
title = "Sums"
rows = {"1.1.1" = "works", "1.1.2" = "fails", "1.1.3" = "no test", "1.1.4" = "skips"}
[[section]]
id = "1.2"
title = "Families"
rows = {"1.2.1" = "one", "1.2.2" = "another"}
"""
MARKED = """
import os
import pytest

@pytest.mark.scope("1.1.1")
@pytest.mark.slow
def test_works(): pass

@pytest.mark.scope("1.1.1", "1.1.2")
@pytest.mark.parametrize("n", [1, 2])
def test_twice(n): assert n > 0

@pytest.mark.scope("1.1.2")
def test_fails(): assert False

@pytest.mark.scope("1.1.4")
def test_skips(): pytest.skip("no")

@pytest.mark.scope("1.2.1")
@pytest.mark.parity(family="one", architecture="OneLM")
def test_one(): assert os.environ.get("MIRADA_WITHOUT") != "one"

@pytest.mark.scope("1.2.2")
@pytest.mark.parity(family="two", architecture="TwoLM")
def test_never_looks(): pass

def test_unmarked(): assert False
"""


@pytest.fixture
def project(tmp_path):
    """A small project with a table and marked tests; returns its root."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "src" / "mirada").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "tests" / "scope.toml").write_text(TABLE)
    (tmp_path / "tests" / "test_marked.py").write_text(MARKED)
    return tmp_path


@pytest.mark.parametrize("workers", ["0", "2"])
def test_scope_counts_rows(project, capsys, workers):
    assert scope.main(["--root", str(project), "--workers", workers]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "scope: 3/6 rows"
    shown = [line.split()[:2] for line in lines if line.startswith("      ") and "::" not in line]
    assert shown == [
        ["closed", "1.1.1"],
        ["failing", "1.1.2"],
        ["failing", "1.1.4"],
        ["open", "1.1.3"],
        ["closed", "1.2.1"],
        ["closed", "1.2.2"],
    ]
    proven = json.loads((project / "src" / "mirada" / "proven.json").read_text())
    tests = ["tests/test_marked.py::test_twice", "tests/test_marked.py::test_works"]
    assert proven["rows"]["1.1.1"] == {"closed": True, "tests": tests}
    assert not proven["rows"]["1.1.2"]["closed"]
    assert proven["parity"] == {"one": {"OneLM": True}, "two": {"TwoLM": True}}


def test_scope_without_a_family(project, capsys):
    scope.main(["--root", str(project)])
    written = (project / "src" / "mirada" / "proven.json").read_text()
    capsys.readouterr()
    assert scope.main(["--root", str(project), "--without", "one"]) == 0
    assert "without one: 1 rows turned failing: 1.2.1" in capsys.readouterr().out
    assert scope.main(["--root", str(project), "--without", "two"]) == 1  # its test cannot fail
    assert "still closed" in capsys.readouterr().out
    assert scope.main(["--root", str(project), "--without", "three"]) == 1  # no such family
    assert (project / "src" / "mirada" / "proven.json").read_text() == written


def test_scope_refuses_unknown_rows_and_broken_files(project, capsys):
    (project / "tests" / "test_more.py").write_text("import nothing_of_this_name\n")
    assert scope.main(["--root", str(project)]) == 1
    assert "tests/test_more.py" in capsys.readouterr().out
    more = "import pytest\n@pytest.mark.scope('1.9.9')\ndef test_more(): pass\n"
    (project / "tests" / "test_more.py").write_text(more)
    assert scope.main(["--root", str(project)]) == 1
    assert "1.9.9" in capsys.readouterr().out
    assert not (project / "src" / "mirada" / "proven.json").exists()


def test_staleness_is_seen(project):
    scope.main(["--root", str(project)])
    proven = json.loads((project / "src" / "mirada" / "proven.json").read_text())
    table = scope.read_table(project / "tests" / "scope.toml")
    collect = ["--collect-only"]
    assert not scope.stale(proven, scope.run_marked(project, collect, {})["tests"], table)
    path = project / "tests" / "test_marked.py"
    for old, new in [
        ('"1.1.1", "1.1.2"', '"1.1.2"'),  # a mark taken away
        ("test_skips", "test_skips_now"),  # a test renamed
        ("[1, 2]", "[1, 2, 3]"),  # a case added
        ('"1.1.4"', '"1.7.1"'),  # a row that the table does not have
        ('"TwoLM"', '"TwoMaskedLM"'),  # a parity row renamed
    ]:
        path.write_text(MARKED.replace(old, new))
        assert scope.stale(proven, scope.run_marked(project, collect, {})["tests"], table), new


# Mutants

CALC = '''"""Sums: a - b in the docstring is not drawn."""


def area(a: int, b: int = 2) -> int:
    if a < 0:
        raise ValueError("a is " + str(a) + " and below " + str(0 + 0))
    return a * b


def unseen(a):
    return a + 1


def tile(size):  # speed
    return size * 2 + 1


def halves(n):
    block = n // 2 + 3  # speed
    print("block", 1 + block)
    return max(n, 0) + 0


class Square:
    def __repr__(self):
        return "square" + str(1 + 1)
'''
TESTED = """
import pytest
from calc import sums

@pytest.mark.fast
def test_area():
    assert sums.area(3) == 6 and sums.area(3, 5) == 15 and sums.area(0) == 0
    with pytest.raises(ValueError):
        sums.area(-1)

def test_not_fast():
    assert sums.unseen(1) == 2
"""


@pytest.fixture
def calc(tmp_path):
    """A package with one tested function and one that the fast tests do not see."""
    (tmp_path / "src" / "calc").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "src" / "calc" / "sums.py").write_text(CALC)
    (tmp_path / "tests" / "test_sums.py").write_text(TESTED)
    return tmp_path


def changes(root: Path) -> set[str]:
    found = mutants.find_mutants(root, "src/calc")
    return {"{} -> {}".format(*mutants.changed_lines(root, mutant)) for mutant in found}


def test_what_is_drawn(calc):
    found = changes(calc)
    assert {
        "return a * b -> return a / b",
        "return a + 1 -> return a - 1",
        "return a + 1 -> return a + 2",
        "return a + 1 -> return a",
        "if a < 0: -> if a <= 0:",
        "if a < 0: -> if a < 1:",
        "if a < 0: -> if (not (a < 0)):",
        "def area(a: int, b: int = 2) -> int: -> def area(a: int, b: int = 3) -> int:",
    } <= found
    for absent in ("raise", "size", "block", "square", "docstring", "max(0"):
        assert not [change for change in found if absent in change], absent


@pytest.mark.parametrize(
    ("line", "mutated"),
    [
        ("y = x.softmax(dim=-1)", "y = x.softmax(dim=-2)"),
        ("y = x.movedim(1, 2)", "y = x.movedim(2, 1)"),
        ("y = f(a, b, c)", "y = f(b, a, c)"),
        ("y = f(a, b, c)", "y = f(a, c, b)"),
        ("y = f(a, k=b)", "y = f(a)"),
        ("y = f(k=b, j=c)", "y = f(j=c)"),
        ("y = not a", "y = (a)"),
        ("y = a if b else c", "y = a if (not (b)) else c"),
        ("y = (a + b) * c", "y = (a - b) * c"),
        ("y = (a * b) + c", "y = (a * b)"),
        ("y = a and b or c", "y = a or b or c"),
        ("y = -1", "y = -2"),
        ("y = True", "y = False"),
        ("y = 0.5", "y = 1.0"),
        ("y = é + b", "y = é - b"),
        ("y += 1", "y -= 1"),
        ("y = a is None", "y = a is not None"),
        ("y = LayerNorm(d)", 'y = __import__("mirada.core.norm", fromlist="*").RMSNorm(d)'),
        ("y = Residual(f, pre=n)", "y = Residual(f, post=n)"),
        ("y = Block(attn=a, mlp=b)", "y = Block(mlp=b, attn=a)"),
        ("y = ('a.{i}', 'b.{i}', SPLIT)", "y = ('a.{i}', 'b.{i}')"),
        ("y = ('a.w', 'b.(q|k|v)')", "y = ('a.w', 'b.(k|q|v)')"),
        ("y = {'tiny': f(1), 'x': f(1)}", "y = {'tiny': f(1), 'x': f(2)}"),
    ],
)
def test_each_kind_of_mutation(calc, line, mutated):
    (calc / "src" / "calc" / "sums.py").write_text(line + "\n")
    assert f"{line} -> {mutated}" in changes(calc)


@pytest.mark.parametrize("line", ["y = key('a', 3)", "y = 'a' + b", "y = {'tiny': 1}"])
def test_what_would_die_at_once_or_means_nothing_is_not_drawn(calc, line):
    (calc / "src" / "calc" / "sums.py").write_text(line + "\n")
    absent = {"y = key(3, 'a')", "y = 'a' - b", "y = {'tiny': 2}", "y = {'tiny': 0}"}
    assert not {change.partition(" -> ")[2] for change in changes(calc)} & absent


def test_a_family_is_held_to_its_own_tests_and_to_those_of_what_stands_on_it():
    near, far = mutants.family_runs(ROOT, "src/mirada/models/llama.py")
    words = near[1].split(" or ")
    assert {"llama", "mistral", "mixtral", "gemma2", "test_consolidated"} <= set(words)
    assert {"tests/parity/test_llama.py", "tests/parity/test_consolidated.py", *mutants.ALIKE,
            "tests/models/test_llama_gguf.py"} <= set(near[2:])
    assert {"tests/parity/test_gemma.py", "tests/parity/test_mixtral.py"} <= set(far)
    assert "tests/parity/test_bert.py" not in [*near, *far]
    for path in sorted((ROOT / "src" / "mirada" / "models").glob("[a-z]*.py")):
        runs = mutants.family_runs(ROOT, path.relative_to(ROOT).as_posix())
        assert len(set(runs[0][2:]) - {*mutants.ALIKE}) or len(runs) > 1, f"nothing tests {path}"


def test_a_kill_by_a_test_that_fails_anyway_shows_nothing(calc):
    (calc / "tests" / "test_sums.py").write_text(TESTED.replace("== 6", "== 7"))
    said = ["survived", "killed (FAILED tests/test_sums.py::test_area - assert 6 == 7)"]
    mutants.check_killers(calc, said[:1])
    with pytest.raises(SystemExit, match="with nothing broken"):
        mutants.check_killers(calc, said)


def test_same_seed_draws_the_same(calc):
    first, again, other = (mutants.draw(calc, "src/calc", seed, 8, []) for seed in (1, 1, 2))
    assert first == again and first != other and len(set(first)) == 8


def test_equivalent_ones_are_drawn_again(calc):
    everything = mutants.draw(calc, "src/calc", 1, 1000, [])
    line, mutated = mutants.changed_lines(calc, everything[0])
    entry = {"file": "calc/sums.py", "line": line, "mutated": mutated, "proof": "a toy"}
    left = mutants.draw(calc, "src/calc", 1, 1000, [entry])
    assert everything[0] not in left and set(left) < set(everything)


def test_mutants_are_killed_where_tests_look_and_survive_elsewhere(calc, capsys):
    before = (calc / "src" / "calc" / "sums.py").read_text()
    options = ["--root", str(calc), "--target", "src/calc", "--count", "1000"]
    assert mutants.main(options) == 1
    out = capsys.readouterr().out
    blocks = [block for block in out.split("--- ") if "+++" in block]
    survivors = [block for block in blocks if "\nsurvived" in block]
    assert len(survivors) > 3 and len(blocks) - len(survivors) > 5
    for block in blocks:
        unseen = "unseen(a)" in block or "max(n, 0)" in block
        assert ("\nsurvived" in block) == unseen, block
    killed = len(blocks) - len(survivors)
    share = 100 * killed / len(blocks)
    assert out.splitlines()[-1] == f"mutants: {killed}/{len(blocks)} killed ({share:.0f} %)"
    assert (calc / "src" / "calc" / "sums.py").read_text() == before


def test_mutants_need_a_suite_that_passes(calc):
    (calc / "tests" / "test_sums.py").write_text(TESTED.replace("== 6", "== 7"))
    with pytest.raises(SystemExit, match="before anything is broken"):
        mutants.main(["--root", str(calc), "--target", "src/calc", "--count", "1"])


def test_equivalent_entries_are_still_true():
    entries = tomllib.loads((ROOT / "tests" / "equivalent.toml").read_text()).get("equivalent", [])
    found = [
        (mutant.file, *mutants.changed_lines(ROOT, mutant))
        for target in mutants.TARGETS
        for mutant in (mutants.find_mutants(ROOT, target) if entries else [])
    ]
    for entry in entries:
        assert len(entry["proof"].split()) > 4, entry
        key = (f"src/mirada/{entry['file']}", entry["line"], entry["mutated"])
        assert key in found, f"no such mutant any more: {entry}"
