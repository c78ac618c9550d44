"""make recipes: run each recipe of recipes/recipes.toml and hold it to the figure written there.

    python tools/recipes.py [NAME ...]

Each is a mirada command on the data that recipes/data.py fetches. Labels are measured by accuracy
on a test file, chat by its answers' perplexity there, language models by bits a byte of a held-out
text, translators by chrF; beside each figure stands what it has to beat. Exit code 1: a figure is
missed by more than its band.
"""

import csv
import gzip
import json
import math
import resource
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent.parent / "recipes"
TEXT, VERSES = 100_000, 200  # characters, and verses, that are measured


def mirada(words: list[str], out: Path) -> dict:
    """What a command says with --json."""
    done = subprocess.run([sys.executable, "-m", "mirada.cli", *words, "--json", "--out", str(out)],
                          cwd=HERE, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def accuracy(recipe: dict, words: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """Against always giving the commonest label of the rows that are tuned on."""
    found = mirada(words, out)["metrics"]["test"]["accuracy"]
    names = [HERE / words[words.index(flag) + 1] for flag in ("--data", "--test")]
    train, test = ([label for row in _rows(name) for label in _labels(row)] for name in names)
    common = Counter(train).most_common(1)[0][0]
    return found, {"always " + common: test.count(common) / len(test)}


def bits_per_byte(recipe: dict, words: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """Against gzip, and the model's own tokens by how often they stand in the text it learned."""
    from mirada import load
    from mirada.tasks import score
    mirada(words, out)
    model = load(out / "model")
    text, learned = ((HERE / "data" / recipe[name]).read_text() for name in ("test", "text"))
    text = text[:TEXT]
    size = len(text.encode())
    ids, known = (model.tokenizer.encode(one, special=False).ids for one in (text, learned))
    count, whole = Counter(known), len(known) + model.tokenizer.size
    alone = -sum(math.log2((count[i] + 1) / whole) for i in ids) / size
    return score.perplexity(model, text).bits_per_byte, {
        "gzip": 8 * len(gzip.compress(text.encode(), 9)) / size, "unigrams": alone}


def perplexity(recipe: dict, words: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """Of the answers, against the model as it was."""
    from mirada import load
    from mirada.tasks import examples, tune
    rows = examples.read(HERE / words[words.index("--test") + 1], "chat").rows
    before = tune.measure(load(words[1]), "chat", rows)["perplexity"]
    return mirada(words, out)["metrics"]["test"]["perplexity"], {"before": before}


def chrf(recipe: dict, words: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """Against giving the source back."""
    from mirada import pipeline
    from mirada.tasks.metrics import translations
    mirada(words, out)
    rows = _rows(HERE / "data" / recipe["test"])[:VERSES]
    sources, wanted = ([row[name] for row in rows] for name in ("es", "en"))
    told = pipeline("translation", str(out / "model"))(sources, max_new_tokens=80, do_sample=False)
    references = [[one] for one in wanted]
    return translations([one["translation_text"] for one in told], references)["chrf"], {
        "copying": translations(sources, references)["chrf"]}


def _rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return (list(csv.DictReader(file)) if path.suffix == ".csv"
                else [json.loads(line) for line in file])


def _labels(row: dict) -> list[str]:
    return row.get("tags") or [row["label"]]


MEASURES = {"accuracy": accuracy, "bits_per_byte": bits_per_byte, "chrf": chrf,
            "perplexity": perplexity}


def main(names: list[str]) -> int:
    recipes = tomllib.loads((HERE / "recipes.toml").read_text())
    unknown = [name for name in names if name not in recipes]
    if unknown:
        sys.exit(f"no recipe is called {unknown[0]}; there are {', '.join(recipes)}")
    if not (HERE / "data" / "messages.csv").exists():
        subprocess.run([sys.executable, str(HERE / "data.py")], check=True)
    missed = 0
    for name in names or recipes:
        recipe = recipes[name]
        with tempfile.TemporaryDirectory() as aside:
            before = _spent()
            found, against = MEASURES[recipe["measure"]](
                recipe, recipe["run"].split(), Path(aside) / "out")
        beside = ", ".join(f"{what} {value:.3f}" for what, value in against.items())
        far = "result" in recipe and abs(found - recipe["result"]) > recipe["band"]
        missed += far
        print(f"{name:12} {recipe['measure']} {found:.3f} ({beside}), {_spent() - before:.0f} s"
              + (f"  MISSED: {recipe['result']} +- {recipe['band']} is written" if far else ""),
              flush=True)
    return int(missed > 0)


def _spent() -> float:
    """Seconds of the processor, of this process and those it waited for."""
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (
        resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
