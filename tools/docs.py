"""make docs: a page for each family in docs/families, from its file, its built tree and its proofs.

As a module: `page(name)` is a page's text, `index()` that of their table. Nothing on them is
written by hand; tests/test_docs.py fails where a page is not what its family's file says.
"""

import dataclasses
import json
import re
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

from mirada import registry
from mirada.look.describe import Description, describe
from mirada.look.diff import diff
from mirada.models import GGUF
from mirada.weights.config import ANY

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "families"
PROVEN = ROOT / "src" / "mirada" / "proven.json"
USES = {  # kind -> a call whose result is shown, what it imports
    "decoder": ("print(model.generate([[5, 6, 7]], max_new_tokens=8))", None),
    "encoder-decoder": ("print(model.generate([[5, 6, 7]], max_new_tokens=8, "
                        "decoder_start_token_id=2))", None),
    "encoder": ("print(model(input_ids=torch.tensor([[5, 6, 7, 8]])))", "torch"),
    "vision": ("print(model(pixel_values=torch.rand(1, 3, *model.body.embed.image)))", "torch"),
    "dual-encoder": ("print(model(input_ids=torch.tensor([[5, 6, model.config.eos]]), "
                     "pixel_values=torch.rand(1, 3, *model.body.vision.embed.image)))", "torch"),
}
NOTE = "<!-- Made by `make docs` from src/mirada/models/{}.py: change that. -->"


@cache
def tiny(name: str) -> Description:
    return describe(f"{name}:tiny")


def bones(name: str) -> Counter:
    """What a family's tiny model is made of, its numbers left out."""
    facts = (f"{aspect}: {words}" for aspect, words in tiny(name).facts.items())
    return Counter(re.sub(r"\d[\d,.e-]*", "n", line) for line in (*facts, *tiny(name).tree[1:]))


@cache
def cousin(name: str) -> str:
    """The family of the same kind that is built most alike; any kind where it is the only one."""
    others = [other for other in registry.families() if other != name]
    kind = tiny(name).facts["kind"]
    alike = [other for other in others if tiny(other).facts["kind"] == kind] or others

    def apart(other: str) -> int:
        mine, theirs = bones(name), bones(other)
        return ((mine - theirs) + (theirs - mine)).total()

    return min(alike, key=lambda other: (apart(other), other))


def parameters(name: str, size: str) -> str:
    model = registry.build(name, size, device="meta")
    return f"{sum(p.numel() for p in model.parameters()):,}"


def sizes(name: str, counts: dict[str, str]) -> list[str]:
    """The table of sizes. counts: size -> parameters, for those that need not be built again."""
    module = registry.family(name)
    lines = ["| size | parameters | differs from the config's defaults by |", "|---|---:|---|"]
    for size, config in module.SIZES.items():
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)
                  if getattr(config, f.name) != _default(f)}
        words = ", ".join(f"{k} {_said(x)}" for k, x in fields.items()) or "nothing"
        count = counts.get(size) or parameters(name, size)
        lines.append(f"| `{name}:{size}` | {count} | {words} |")
    return lines


def _default(field: dataclasses.Field):
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def heads(name: str, proven: dict) -> list[str]:
    """Each head with the rows of the parity table that it passed."""
    module = registry.family(name)
    lines = ["| head | made of | equal to the reference |", "|---|---|---|"]
    for head in module.HEADS:
        model = registry.build(name, "tiny", architecture=head, device="meta")
        rows = [row for row, passed in proven.items() if passed and row.partition("-")[0] == head]
        variants = [row.partition("-")[2] for row in rows if "-" in row]
        said = "yes" if rows else "no row shows it"
        said += f", also {', '.join(variants)}" if variants else ""
        lines.append(f"| `{head}` | {type(model.head).__name__} | {said} |")
    return lines


def keys(name: str) -> list[str]:
    """The keys of config.json that are read, and those that may stand there and change nothing."""
    module = registry.family(name)
    lines = ["| key of config.json | field | where a file leaves it out |", "|---|---|---|"]
    for f in dataclasses.fields(module.Config):
        if "file" in f.metadata:
            unsaid = ("refused" if f.metadata["required"] else "its own defaults"
                      if dataclasses.is_dataclass(_default(f)) else f"`{_said(_default(f))}`")
            lines.append(f"| `{f.metadata['file']}` | `{f.name}` | {unsaid} |")
    inert = getattr(module, "INERT", {})
    free = sorted(k for k, value in inert.items() if value is ANY)
    bound = sorted(f"`{k}` (only `{_said(v)}`)" for k, v in inert.items() if v is not ANY)
    lines.append("")
    if hasattr(module.Config, "prepare"):
        lines += ["Older names, and defaults that depend on `model_type`, are turned into these "
                  "first (`prepare` in the family's file).", ""]
    if free:
        lines += ["Read past, whatever they hold: " + ", ".join(f"`{k}`" for k in free) + ".", ""]
    if bound:
        lines += ["Accepted with one value, for no other is built: " + ", ".join(bound) + ".", ""]
    return [*lines, "Keys that every config may have (labels, token ids, options of generation) "
            "are read past too. Any other key is refused with its name and value."]


def forms(name: str) -> list[str]:
    types = sorted(t for t, home in registry.FAMILIES.items() if home == name)
    lines = [f"- a folder with `config.json` (`model_type` {', '.join(f'`{t}`' for t in types)}) "
             "and `model.safetensors`, whole or in shards; written so too",
             "- the same with `pytorch_model.bin`, whole or in shards, read by a restricted child "
             "process"]
    if name in GGUF.values():
        names = sorted(n.partition(":")[0] for n, home in GGUF.items() if home == name)
        lines.append(f"- GGUF, `general.architecture` {', '.join(f'`{n}`' for n in names)}")
    if name == "llama":
        lines.append("- its first files: `params.json` beside `consolidated.00.pth` ...")
    return lines


def proofs(name: str, proven: dict) -> list[str]:
    """What the tests have shown, from proven.json."""
    found = json.loads(PROVEN.read_text())
    titles = {row: title for section in tomllib.loads(
        (ROOT / "tests" / "scope.toml").read_text())["section"]
        for row, title in section["rows"].items()}
    own = f"tests/parity/test_{name}.py::"
    closed = [row for row, state in found["rows"].items()
              if state["closed"] and any(test.startswith(own) for test in state["tests"])]
    passed = [row for row, good in proven.items() if good]
    lines = [f"{len(passed)} rows of the parity table passed: random weights in the reference's "
             "own file, all numbers in float64, outputs and gradients within 1e-10, saved back bit "
             "for bit, and read by the reference when mirada built them; padding, caches, losses "
             "and recording where a head has them; and of each, faults put in on purpose that had "
             "to show."] if passed else [
        "No reference reads such files, so no row of the parity table can. What is shown is in "
        f"`tests/parity/test_{name}.py`."]
    if closed:
        lines += ["", "Rows of the checklist (`tests/scope.toml`) that its tests close, alone or "
                  "with others:", ""]
        lines += [f"- {row} {titles[row]}" for row in closed]
    return lines


def use(name: str) -> list[str]:
    call, needs = USES[tiny(name).facts["kind"]]
    if name == "clip_text":  # it reads a text at its end token
        call = call.replace("8]]", "model.config.eos]]")
    first = f"import {needs}, mirada" if needs else "import mirada"
    return ["```python", first, f"model = mirada.build(\"{name}:tiny\", seed=0)  # or "
            "mirada.load(\"a folder\")", call, "```"]


def page(name: str, counts: dict[str, str] | None = None) -> str:
    """A family's page. counts: as in `sizes`."""
    module = registry.family(name)
    proven = json.loads(PROVEN.read_text())["parity"].get(name, {})
    papers = re.findall(r"\b\d{4}\.\d{5}\b", module.__doc__)
    first, like = describe(name), cousin(name)
    size = next(iter(module.SIZES))
    facts = [f"{aspect:{max(map(len, first.facts))}}  {said}" for aspect, said in
             first.facts.items()]
    lines = [
        NOTE.format(name), f"# {name}", "", *module.__doc__.strip().splitlines(), "",
        *([f"Papers: {', '.join(f'arXiv:{p}' for p in dict.fromkeys(papers))}.", ""]
          if papers else []),
        *use(name), "", "## The built tree", "", f"`mirada describe {name}:{size}`", "", "```text",
        *first.tree, "", *facts, "```", "", f"## Beside {like}, its nearest cousin", "",
        f"`mirada diff {like}:tiny {name}:tiny`", "", "```text",
        *str(diff(f"{like}:tiny", f"{name}:tiny")).rstrip().splitlines(), "```", "", "## Sizes",
        "", *sizes(name, counts or {}), "", "## Heads", "", *heads(name, proven), "",
        "## Files", "", *forms(name), "", "## Keys", "", *keys(name), "", "## What is proven", "",
        *proofs(name, proven)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def index() -> str:
    """The table of all pages."""
    lines = [NOTE.format("*"), "# Families", "", "One file each in `src/mirada/models`. Systems "
             "whose weights were never published are in [closed.md](../closed.md).", "",
             "| family | what it is | kind | nearest cousin |", "|---|---|---|---|"]
    for name in registry.families():
        about = registry.family(name).__doc__.strip().split("\n\n")[0].replace("\n", " ")
        lines.append(f"| [{name}]({name}.md) | {about} | {tiny(name).facts['kind']} | "
                     f"{cousin(name)} |")
    return "\n".join(lines) + "\n"


def counted(text: str) -> dict[str, str]:
    """size -> parameters, as a page's table has them."""
    return dict(re.findall(r"^\| `\w+:([^`]+)` \| ([\d,]+) \|", text, re.M))


def _said(value) -> str:
    return json.dumps(value) if isinstance(value, str | bool) or value is None else (
        f"{value:g}" if isinstance(value, float) else str(value))


def main() -> int:
    PAGES.mkdir(parents=True, exist_ok=True)
    wanted = {f"{name}.md": page(name) for name in registry.families()} | {"README.md": index()}
    for path in PAGES.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (PAGES / name).write_text(text)
    print(f"{len(wanted)} pages in {PAGES.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
