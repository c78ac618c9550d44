"""make scope: which rows of the checklist work, shown by the tests that name them.

As a pytest plugin (`-p tools.scope --scope-report FILE`) it writes down every test marked `scope`
or `parity` and how it ended; with --collect-only, the tests alone. As a command it runs those
tests, prints the rows by section and writes src/mirada/proven.json, from which `mirada models`
speaks.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
MARKED = "(scope or parity) and not gpu"

# The plugin


def pytest_addoption(parser):
    parser.addoption("--scope-report", help="write the marked tests and their outcomes here")


def pytest_configure(config):
    if config.getoption("--scope-report"):
        config.pluginmanager.register(Report(config), "scope-report")


class Report:
    """Collects in the process that the user started; workers send it their reports."""

    def __init__(self, config):
        self.config = config
        self.tests: dict[str, dict] = {}
        self.broken: list[str] = []  # files that could not be collected

    def pytest_collection_modifyitems(self, items):
        for item in items:
            marks = marks_of(item)
            item.user_properties += marks.items()
            if self.config.option.collectonly:
                self.tests[item.nodeid] = marks

    def pytest_deselected(self, items):
        for item in items:
            self.tests.pop(item.nodeid, None)

    def pytest_collectreport(self, report):
        if report.failed:
            self.broken.append(report.nodeid)

    def pytest_runtest_logreport(self, report):
        """A test passed if all its phases did; a skip shows nothing, so it counts as a failure."""
        marks = {k: v for k, v in report.user_properties if k in ("rows", "parity")}
        test = self.tests.setdefault(report.nodeid, {**marks, "passed": True})
        test["passed"] = test["passed"] and report.passed

    def pytest_sessionfinish(self):
        if not hasattr(self.config, "workerinput"):
            report = {"tests": self.tests, "broken": sorted(set(self.broken))}
            Path(self.config.getoption("--scope-report")).write_text(json.dumps(report))


def marks_of(item) -> dict:
    """rows: the scope rows that a test closes; parity: the [family, architecture] it proves."""
    rows = {row for mark in item.iter_markers("scope") for row in mark.args}
    pairs = {(m.kwargs["family"], m.kwargs["architecture"]) for m in item.iter_markers("parity")}
    return {"rows": sorted(rows), "parity": [list(pair) for pair in sorted(pairs)]}


# The command


def read_table(path: Path) -> list[dict]:
    """The sections of tests/scope.toml, each with `id`, `title` and `rows` (id -> meaning)."""
    return tomllib.loads(path.read_text())["section"]


def run_marked(root: Path, options: list[str], environment: dict) -> dict:
    """Run (or only collect) the marked tests under root, and return the plugin's report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "-q", "-m", MARKED, "-p", "tools.scope"]
        command += ["--scope-report", str(file), "--continue-on-collection-errors", *options]
        places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), **environment}
        run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        if run.returncode not in (0, 1, 2, 5) or not file.exists():
            raise SystemExit(f"pytest could not run:\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
        return {**json.loads(file.read_text()), "output": run.stdout}


def summarise(tests: dict[str, dict]) -> dict:
    """Rows and parity pairs with whether every test of theirs passed, as proven.json holds them."""
    rows: dict[str, dict] = {}
    parity: dict[str, dict[str, bool]] = {}
    for name, test in sorted(tests.items()):
        for row in test["rows"]:
            entry = rows.setdefault(row, {"closed": True, "tests": []})
            entry["closed"] = entry["closed"] and test.get("passed", False)
            entry["tests"] = sorted({*entry["tests"], name.split("[")[0]})
        for family, architecture in test["parity"]:
            pairs = parity.setdefault(family, {})
            pairs[architecture] = pairs.get(architecture, True) and test.get("passed", False)
    rows = dict(sorted(rows.items(), key=lambda item: [int(n) for n in item[0].split(".")]))
    return {"rows": rows, "parity": dict(sorted(parity.items())), "markers": fingerprint(tests)}


def fingerprint(tests: dict[str, dict]) -> str:
    """A hash of which test is marked with what: another one means that proven.json is stale."""
    lines = [f"{name} {test['rows']} {test['parity']}" for name, test in sorted(tests.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def stale(proven: dict, tests: dict[str, dict], table: list[dict]) -> list[str]:
    """What proven.json says otherwise than the markers now in the suite, in sentences."""
    now, known = summarise(tests), {row for section in table for row in section["rows"]}
    problems = [f"row {row} is not in tests/scope.toml" for row in now["rows"] if row not in known]
    for row in sorted(now["rows"].keys() | proven["rows"].keys()):
        before, after = (d["rows"].get(row, {}).get("tests", []) for d in (proven, now))
        if before != after:
            problems.append(f"row {row}: proven.json names {before}, the suite {after}")
    if proven["markers"] != now["markers"]:
        problems.append("the marked tests are not those that proven.json was written from")
    return problems


def show(table: list[dict], summary: dict) -> str:
    """The rows by section, ending in one line with the count."""
    lines, closed, total = [], 0, 0
    for section in table:
        states = {row: _state(summary["rows"].get(row)) for row in section["rows"]}
        count = sum(state == "closed" for state in states.values())
        lines.append(f"{section['id']:5} {section['title']}: {count}/{len(states)}")
        for state in ("closed", "failing"):
            for row in (row for row in states if states[row] == state):
                lines.append(f"      {state:8}{row:8}{section['rows'][row]}")
                if state == "failing":
                    lines += [f"                  {test}" for test in summary["rows"][row]["tests"]]
        if left := [row for row in states if states[row] == "open"]:
            lines.append(f"      open    {' '.join(left)}")
        closed, total = closed + count, total + len(states)
    for family, pairs in summary["parity"].items():
        failing = [architecture for architecture, passed in pairs.items() if not passed]
        lines.append(f"parity {family}: {len(pairs) - len(failing)}/{len(pairs)} {failing or ''}")
    return "\n".join([*(line.rstrip() for line in lines), f"scope: {closed}/{total} rows"])


def _state(entry: dict | None) -> str:
    return "open" if entry is None else "closed" if entry["closed"] else "failing"


def hidden(family: str, proven: dict, tests: dict[str, dict], now: dict) -> tuple[list, list]:
    """With a family hidden: the closed rows that turned, and those of its parity that did not."""
    closed = {row for row, entry in proven["rows"].items() if entry["closed"]}
    turned = {row for row in closed if not now["rows"].get(row, {"closed": False})["closed"]}
    of_family = {
        row
        for test in tests.values()
        for row in test["rows"]
        if any(pair[0] == family for pair in test["parity"])
    }
    return sorted(turned), sorted(of_family & closed - turned)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make scope", description=__doc__.splitlines()[0])
    parser.add_argument("--without", metavar="FAMILY", help="hide it: its rows must turn failing")
    parser.add_argument("--workers", default="0", help="test processes")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project to measure")
    options = parser.parse_args(arguments)

    table = read_table(options.root / "tests" / "scope.toml")
    target = options.root / "src" / "mirada" / "proven.json"
    environment = {"MIRADA_NO_SKIP": "1"}
    if options.without:
        environment["MIRADA_WITHOUT"] = options.without
    report = run_marked(options.root, ["-n", options.workers], environment)
    summary = summarise(report["tests"])
    print(show(table, summary))
    if options.without:
        return _after_hiding(options.without, json.loads(target.read_text()), report, summary)
    known = {row for section in table for row in section["rows"]}
    unknown = sorted(summary["rows"].keys() - known)
    failing = not all(test["passed"] for test in report["tests"].values())
    if report["broken"] or unknown:
        print(f"not written: uncollected files {report['broken']}, unknown rows {unknown}")
        return 1
    target.write_text(json.dumps(summary, indent=1) + "\n")
    if failing:
        print("\n".join(report["output"].splitlines()[-40:]), file=sys.stderr)
    return 1 if failing else 0


def _after_hiding(family: str, proven: dict, report: dict, summary: dict) -> int:
    turned, kept = hidden(family, proven, report["tests"], summary)
    print(f"without {family}: {len(turned)} rows turned failing: {' '.join(turned)}")
    if kept:
        print(f"without {family}: still closed, though its parity is among their tests: {kept}")
    return 1 if kept or not turned else 0


if __name__ == "__main__":
    sys.exit(main())
