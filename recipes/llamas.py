"""From English to Dutch and German, from nothing: "I love llamas", one word after another.

    python recipes/llamas.py [FOLDER]

Writes a small language's sentences as pairs, trains a Transformer on four fifths of them with
`mirada train`, and prints the walk through one that it has never seen, and BLEU on all of those.
"""

import csv
import itertools
import random
import sys
import tempfile
from pathlib import Path

import torch

import mirada
from mirada.cli import main

WHO = [("I", "ik", "ich", 0), ("you", "jij", "du", 1), ("we", "wij", "wir", 2),
       ("they", "zij", "sie", 2)]
DO = [("love", ("hou", "houdt", "houden"), "van ", ("liebe", "liebst", "lieben")),
      ("see", ("zie", "ziet", "zien"), "", ("sehe", "siehst", "sehen")),
      ("draw", ("teken", "tekent", "tekenen"), "", ("zeichne", "zeichnest", "zeichnen")),
      ("know", ("ken", "kent", "kennen"), "", ("kenne", "kennst", "kennen"))]
WHAT = [("llamas", "lama's", "Lamas"), ("cats", "katten", "Katzen"),
        ("birds", "vogels", "Vögel"), ("trees", "bomen", "Bäume"),
        ("houses", "huizen", "Häuser"), ("horses", "paarden", "Pferde"),
        ("books", "boeken", "Bücher"), ("stars", "sterren", "Sterne")]
WHEN = [("", "", ""), (" today", " vandaag", " heute"), (" often", " vaak", " oft")]
ASKED = "nl: I love llamas"


def pairs() -> tuple[list, list]:
    """(learned, held out): each (source, target). The sentence asked for is not learned."""
    every = []
    for (who, nl_who, de_who, person), (do, nl_do, van, de_do), (what, nl_what, de_what), (
            when, nl_when, de_when) in itertools.product(WHO, DO, WHAT, WHEN):
        english = f"{who} {do} {what}{when}"
        every.append(("nl: " + english, f"{nl_who} {nl_do[person]}{nl_when} {van}{nl_what}"))
        every.append(("de: " + english, f"{de_who} {de_do[person]}{de_when} {de_what}"))
    every.sort()
    random.Random(0).shuffle(every)
    every.sort(key=lambda pair: pair[0] == ASKED)  # the last is held out
    cut = len(every) * 4 // 5
    return every[:cut], every[cut:]


def train(folder: Path, steps: int = 400, out: str = "run"):
    """The model of a run in the folder."""
    learned, _ = pairs()
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "target"), *learned])
    (folder / "run.toml").write_text(
        'model = "transformer:tiny"\nobjective = "translate"\ndata = "pairs.csv"\nlength = 24\n'
        f'tokens = 300\n[plan]\nsteps = {steps}\nbatch = 32\ndtype = "float32"\n[recipe]\n'
        'preset = "pretrain"\nrate = 3e-3\nbetas = [0.9, 0.98]\n')
    if main(["train", str(folder / "run.toml"), "--out", str(folder / out), "--show", "0"]):
        raise SystemExit("the run failed")
    return mirada.load(folder / out / "model")


def written(model, text: str):
    """Yields what is written after each word."""
    ids = torch.tensor([model.tokenizer.encode(text).ids])
    made, said = [], ""
    for token in model.stream(ids, max_new_tokens=24):
        made.append(token)
        now = model.tokenizer.decode(made)
        begins = model.tokenizer.token(token).startswith("▁") or token in model.tokenizer.eos_ids
        if said and begins:
            yield said
        said = now
    if not made or made[-1] not in model.tokenizer.eos_ids:
        yield said


def walk(model, text: str = ASKED) -> list[str]:
    """The lines of the walk: what is read and was written, and the next word."""
    lines, before = [], ""
    source = text.partition(": ")[2]
    for step, now in enumerate(written(model, text), 1):
        read = f"{source} {before}".strip()
        lines.append(f'Step {step}: "{read}" -> "{now[len(before):].strip()}"')
        before = now
    return [*lines, f'Result: "{before}"']


def bleu(model, held) -> float:
    """Of the whole held-out part."""
    from sacrebleu import corpus_bleu
    found = []
    for source, _ in held:
        *_, text = "", *written(model, source)
        found.append(text)
    return corpus_bleu(found, [[target for _, target in held]]).score


def run(folder: Path) -> None:
    model = train(folder)
    print("\n".join(walk(model)))
    print("\n".join(walk(model, "de: they draw llamas often")))
    held = pairs()[1]
    print(f"BLEU {bleu(model, held):.1f} on {len(held)} sentences that it never saw")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder))
