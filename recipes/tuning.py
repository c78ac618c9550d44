"""What pretraining is worth: MiniLM and the same network from nothing learn questions' types.

    python recipes/tuning.py          docs/pictures/tuning.png, and its numbers

The rows of each size are drawn evenly over the six types; all are told on the same 579 questions.
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

import mirada
from mirada.tasks.tune import tune

HERE = Path(__file__).parent
SIZES = {100: (12, 16), 1000: (4, 16), None: (2, 32)}  # rows, None: all -> epochs, rows an update
RATES = {"MiniLM": 1e-4, "from nothing": 3e-4}
LINES = {"MiniLM": "#0072b2", "from nothing": "#d55e00"}


def model(name: str):
    known = mirada.load("minilm")
    if name == "MiniLM":
        return known
    shape = {f: getattr(known.config, f) for f in known.config.__dataclass_fields__}
    new = mirada.build("bert:base", architecture="BertModel", seed=0, **shape)
    new.tokenizer = known.tokenizer
    return new


def evenly(rows: list[dict], count: int | None) -> list[dict]:
    """The first rows of each label by turns, until there are so many."""
    of = {label: [row for row in rows if row["label"] == label]
          for label in sorted({row["label"] for row in rows})}
    turns = [some[n] for n in range(len(rows)) for some in of.values() if n < len(some)]
    return turns[:count]


def measured(name: str, count: int | None) -> dict:
    with (HERE / "data" / "questions.csv").open(newline="") as file:
        rows = evenly(list(csv.DictReader(file)), count)
    epochs, batch = SIZES[count]
    with tempfile.NamedTemporaryFile("w", suffix=".csv", newline="") as made:
        out = csv.DictWriter(made, ("text", "label"))
        out.writeheader()
        out.writerows(rows)
        made.flush()
        found = tune(model(name), "classify", made.name, test=HERE / "data" / "questions-test.csv",
                     epochs=epochs, batch=batch, rate=RATES[name])
    return {"model": name, "rows": len(rows), "accuracy": found.metrics["test"]["accuracy"],
            "seconds": found.seconds}


def draw(found: list[dict], path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, colour in LINES.items():
        some = [one for one in found if one["model"] == name]
        x, y = [one["rows"] for one in some], [100 * one["accuracy"] for one in some]
        axes.plot(x, y, "o-", color=colour)
        axes.annotate(name, (x[-1], y[-1]), (8, -3), textcoords="offset points", color=colour)
        for a, b in zip(x, y, strict=True):
            axes.annotate(f"{b:.0f}", (a, b), (0, 7), textcoords="offset points", ha="center")
    axes.set(xscale="log", xlim=(70, 14000), ylim=(0, 100), xlabel="rows it is tuned on",
             ylabel="right, %", title="Six types of questions: 579 that were not tuned on")
    axes.set_xticks(x, [f"{n:,}" for n in x], minor=False)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    found = []
    for count in SIZES:
        for name in RATES:
            found.append(measured(name, count))
            print(json.dumps(found[-1]), flush=True)
    draw(found, Path(sys.argv[1]) if len(sys.argv) > 1 else
         HERE.parent / "docs" / "pictures" / "tuning.png")
