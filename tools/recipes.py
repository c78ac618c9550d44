"""make recipes: run each recipe of recipes/recipes.toml and hold it to the figure written there.

    python tools/recipes.py [NAME ...]

Each is a mirada command on the data that recipes/data.py fetches. Labels are measured by accuracy
on a test file, chat by its right answers there, language models by bits a byte of a held-out text,
translators by chrF, hidden tokens by perplexity, pictures by accuracy; beside each figure stands
what it has to beat. Exit code 1: a figure is missed by more than its band.
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
sys.path.append(str(HERE))
TEXT, VERSES, STRETCHES = 100_000, 200, 640  # characters, verses and stretches to measure
PRIOR = 150  # tokens that the frequencies count as beside a row's own: best on learned proteins


def mirada(words: list[str], out: Path) -> dict:
    """What a command says with --json."""
    done = subprocess.run([sys.executable, "-m", "mirada.cli", *words, "--json", "--out", str(out)],
                          cwd=HERE, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def accuracy(recipe: dict, words: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """Against always giving the commonest label of the rows that are tuned on; of words, against
    each word's commonest too."""
    found = mirada(words, out)["metrics"]["test"]["accuracy"]
    names = [HERE / words[words.index(flag) + 1] for flag in ("--data", "--test")]
    train, test = ([one for row in _rows(name) for one in _labels(row)] for name in names)
    common = Counter(label for _, label in train).most_common(1)[0][0]
    against = {"always " + common: sum(label == common for _, label in test) / len(test)}
    if train[0][0] is not None:
        often = dict(pair for pair, _ in reversed(Counter(train).most_common()))
        right = sum(often.get(word, common) == label for word, label in test)
        against["each word's commonest"] = right / len(test)
    return found, against


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


def said(recipe: dict, words: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """How many answers are the wanted ones to the letter, against the model as it was and always
    giving the commonest. The answers' perplexity is told beside it, and some of both are shown."""
    from mirada import load
    from mirada.generate.text import text
    from mirada.tasks import examples, tune
    learned, rows = (examples.read(HERE / words[words.index(flag) + 1], "chat").rows
                     for flag in ("--data", "--test"))
    wanted = [one.label[-1]["content"] for one in rows]
    common = Counter(one.label[-1]["content"] for one in learned).most_common(1)[0][0]

    def answers(model) -> list[str]:
        return [text(model, one.label[:-1], max_new_tokens=24, do_sample=False).strip()
                for one in rows]

    def right(told: list[str]) -> float:
        return sum(map(str.__eq__, told, wanted)) / len(wanted)

    model = load(words[1])
    before, first = answers(model), tune.measure(model, "chat", rows)["perplexity"]
    last = mirada(words, out)["metrics"]["test"]["perplexity"]
    now = answers(load(out))
    print(f"    perplexity of the answers {first:.1f} before, {last:.2f} now")
    for n in range(0, len(rows), len(rows) // 4):
        print(f"    {rows[n].label[-2]['content']} ({wanted[n]})\n      before: {before[n]!r}\n"
              f"      now:    {now[n]!r}")
    return right(now), {"before": right(before), "always " + common: right([common] * len(rows))}


def chrf(recipe: dict, words: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """Against giving the source back, an LSTM that trained on the same pairs for as many steps,
    and what the translations are worth beside another verse: so much is style. One is shown: its
    source, both translations, and what was wanted."""
    import lstm

    from mirada import load, pipeline
    from mirada.tasks.metrics import translations
    from mirada.train import config
    mirada(words, out)
    run, _, pairs = config.open_run(out)
    model = load(out / "model")
    rows = _rows(HERE / "data" / recipe["test"])
    rows = rows[:: max(1, len(rows) // VERSES)]  # of all books
    sources, wanted = ([row[name] for row in rows] for name in (run.column, run.target))
    ends = {"truncation": True, "max_new_tokens": run.length - 1, "do_sample": False}
    told = [one["translation_text"] for one in pipeline("translation", model)(sources, **ends)]
    recurrent = lstm.train(pairs, model.config.vocab, run.whole_plan())
    other = [lstm.translate(recurrent, pairs, model.tokenizer, text) for text in sources]
    for text in (sources[0], told[0], other[0], wanted[0]):
        print(f"    {text}")
    references = [[one] for one in wanted]
    return translations(told, references)["chrf"], {
        "LSTM": translations(other, references)["chrf"],
        "copying": translations(sources, references)["chrf"],
        "other verses": translations(told, references[1:] + references[:1])["chrf"]}


def hidden(recipe: dict, words: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """How many tokens a hidden one is as good as chosen among (perplexity), against knowing how
    often each stands in what was learned, and that mixed with how often in its own row: what a
    row is rich in. All that are chosen become the mask."""
    import torch

    from mirada import load
    from mirada.train import config, language, order
    from mirada.train.corpus import Corpus
    mirada(words, out)
    run, _, learned = config.open_run(out)
    model = load(out / "model")
    texts = [row[run.column] for row in _rows(HERE / "data" / recipe["test"])]
    held = language.HiddenToken(Corpus.of([model.tokenizer.encode(text, special=False).ids
                                           for text in texts]), run.length, model.tokenizer)
    held.fates = (1.0, 0.0)
    samples = [held.sample(n, order.draw(0, 0, n)) for n in range(min(held.count, STRETCHES))]
    count, whole = Counter(learned.corpus.tokens.tolist()), len(learned.corpus.tokens)
    alone, near, hid = 0.0, 0.0, 0
    for ids, labels in samples:
        seen = Counter(i for i in ids if i not in model.tokenizer.special_ids)
        for i in (i for i in labels if i != language.IGNORED):
            alone -= math.log(count[i] / whole)
            near -= math.log((seen[i] + PRIOR * count[i] / whole) / (seen.total() + PRIOR))
            hid += 1
    with torch.inference_mode():
        parts = [held.batch(samples[n : n + 32]) for n in range(0, len(samples), 32)]
        told = sum(float(held.loss(model, part)[0]) for part in parts)
    return math.exp(told / hid), {"frequencies": math.exp(alone / hid),
                                  "of its row too": math.exp(near / hid)}


def pictures(recipe: dict, words: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """Right names of held-out pictures, against always giving the commonest, and that of the
    picture that was learned from which is nearest, pixel by pixel."""
    import torch

    from mirada import load
    from mirada.train import pictures as room
    mirada(words, out)
    model = load(out / "model")
    names = room.label_names(model)
    held, learned = (room.read([HERE / "data" / recipe[name]], names) for name in ("test", "text"))
    a, b = (torch.stack([torch.from_numpy(one).float().flatten() for one in data.pictures])
            for data in (held, learned))
    wanted, known = torch.tensor(held.labels), torch.tensor(learned.labels)
    nearest = known[torch.cdist(a, b).argmin(1)]
    common = int(known.mode().values)
    return room.accuracy(model, room.Pictures(held, model.processor)), {
        f"always {names[common]}": float((wanted == common).float().mean()),
        "nearest": float((nearest == wanted).float().mean())}


def _rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return (list(csv.DictReader(file)) if path.suffix == ".csv"
                else [json.loads(line) for line in file])


def _labels(row: dict) -> list[tuple]:
    """(word, its label) of each; of a text as a whole the word is None."""
    if "tags" in row:
        return list(zip(row["tokens"], row["tags"], strict=True))
    return [(None, row["label"])]


MEASURES = {"accuracy": accuracy, "bits_per_byte": bits_per_byte, "chrf": chrf,
            "hidden": hidden, "said": said, "pictures": pictures}


def main(names: list[str]) -> int:
    recipes = tomllib.loads((HERE / "recipes.toml").read_text())
    unknown = [name for name in names if name not in recipes]
    if unknown:
        sys.exit(f"no recipe is called {unknown[0]}; there are {', '.join(recipes)}")
    if not (HERE / "data" / "digits.npz").exists():  # the last that it writes
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
