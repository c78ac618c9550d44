"""How answers are measured against references, by the definitions that papers use."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

from mirada.errors import MiradaError


def ratios(hits: int, found: int, wanted: int) -> dict[str, float]:
    """precision, recall and their harmonic mean; 0 where nothing was found or wanted."""
    precision, recall = hits / found if found else 0.0, hits / wanted if wanted else 0.0
    both = precision + recall
    return {"precision": precision, "recall": recall,
            "f1": 2 * precision * recall / both if both else 0.0}


def labels(gold: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """Of one label a text: accuracy, and F1: micro over all decisions (equal to accuracy here),
    macro the mean over the labels that are in either."""
    right = sum(g == f for g, f in zip(gold, found, strict=True))
    each = [ratios(sum(g == f == name for g, f in zip(gold, found, strict=True)),
                   sum(f == name for f in found), sum(g == name for g in gold))["f1"]
            for name in sorted({*gold, *found})]
    return {"accuracy": right / len(gold), "macro_f1": sum(each) / len(each),
            "micro_f1": right / len(gold)}


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(name, first, end) of the spans that BIO or BIOES tags mark. As conlleval: I- or E- goes on
    where B- or I- of the same name stands before it, and begins a span elsewhere."""
    found: list[tuple[str, int, int]] = []
    begun, before = None, ("O", "")
    for i, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        goes_on = mark in ("I", "E") and before[0] in ("B", "I") and before[1] == name
        if begun is not None and not goes_on:
            found.append((before[1], begun, i))
            begun = None
        if mark != "O" and begun is None:
            begun = i
        before = (mark, name)
    return found


def span_f1(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole spans, right in name and both ends (micro, as seqeval),
    the mean F1 of the names (macro), and the accuracy of single tags."""
    wanted, given = (Counter((n, *span) for n, tags in enumerate(every) for span in spans(tags))
                     for every in (gold, found))
    hits = wanted & given
    each = [ratios(*(sum(1 for span in some if span[1] == name) for some in (hits, given, wanted)))
            for name in sorted({span[1] for span in wanted | given})]
    flat = [(g, f) for one, other in zip(gold, found, strict=True)
            for g, f in zip(one, other, strict=True)]
    return ratios(len(hits), len(given), len(wanted)) | {
        "macro_f1": sum(one["f1"] for one in each) / max(1, len(each)),
        "accuracy": sum(g == f for g, f in flat) / max(1, len(flat))}


# Numbers


def correlation(found: Sequence[float], wanted: Sequence[float]) -> dict[str, float]:
    """Pearson's of the numbers, and Spearman's, which is Pearson's of their ranks; 0 where one side
    is always the same."""
    return {"pearson": _pearson(found, wanted), "spearman": _pearson(_ranks(found), _ranks(wanted))}


def _pearson(a: Sequence[float], b: Sequence[float]) -> float:
    a, b = ([x - sum(one) / len(one) for x in one] for one in (a, b))
    size = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0


def _ranks(numbers: Sequence[float]) -> list[float]:
    """Equal numbers share the mean of their ranks."""
    ordered = sorted(numbers)
    first = {x: n for n, x in reversed(list(enumerate(ordered)))}
    count = Counter(ordered)
    return [first[x] + (count[x] - 1) / 2 for x in numbers]


# Texts


def normal(answer: str) -> str:
    """As SQuAD compares answers: no case, punctuation, English articles or extra spaces."""
    answer = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def exact(answer: str, references: Sequence[str]) -> float:
    """Whether it is one of the references; no reference: whether there is no answer (SQuAD 2)."""
    return float(normal(answer) in {normal(one) for one in references or [""]})


def overlap(answer: str, references: Sequence[str]) -> float:
    """F1 of the words that an answer and its best reference share."""
    return max(_shared(normal(answer).split(), normal(one).split()) for one in references or [""])


def _shared(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    return ratios(sum((Counter(found) & Counter(wanted)).values()), len(found), len(wanted))["f1"]


def rouge(text: str, references: Sequence[str]) -> dict[str, float]:
    """F1 of ROUGE-1, -2 and -L (Lin, 2004), of the best reference. Words in lower case, without a
    stemmer. differs: accented letters are letters (the common package drops them)."""
    every = [_rouge(_words(text), _words(one)) for one in references]
    return {name: max(one[name] for one in every) for name in every[0]}


def _rouge(found: list[str], wanted: list[str]) -> dict[str, float]:
    scores = {}
    for n in (1, 2):
        a, b = (Counter(zip(*(words[i:] for i in range(n)), strict=False))
                for words in (found, wanted))
        scores[f"rouge{n}"] = ratios((a & b).total(), a.total(), b.total())["f1"]
    scores["rougeL"] = ratios(_common(found, wanted), len(found), len(wanted))["f1"]
    return scores


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return row[-1]


def translations(found: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU (Papineni et al., 2002) and chrF (Popović, 2015), 0 to 100, by sacrebleu.
    Raises MiradaError where that is not installed."""
    try:
        import sacrebleu
    except ImportError:
        raise MiradaError("BLEU and chrF need sacrebleu: pip install 'mirada[eval]'") from None
    most = max(map(len, references))
    columns = [[some[n] if n < len(some) else None for some in references] for n in range(most)]
    return {"bleu": sacrebleu.corpus_bleu(list(found), columns).score,
            "chrf": sacrebleu.corpus_chrf(list(found), columns).score}
