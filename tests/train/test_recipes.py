"""The recipes: archives are read as what they are, nothing broken passes, and figures are held."""

import csv
import gzip
import io
import json
import lzma
import math
import random
import struct
import tarfile
import tomllib
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

import mirada
from mirada import cli
from mirada.generate import text as generate_text
from mirada.tasks import tune
from mirada.tasks.metrics import translations
from mirada.train import baselines, config, seq2seq
from mirada.train.loop import Plan
from mirada.train.loss import IGNORED, token_loss
from recipes import data, lstm
from tools import recipes
from train import toys

ROOT = Path(__file__).parent.parent.parent

VERSES = [b"", b'<chapter n="1" osisID="Gen.1"/>',
          b'<w lemma="strong:H7225">EN el principio</w> <w>cri\xc3\xb3</w> Dios. ',
          b"\xc2\xb6 \\nd God <transChange>was</transChange> good<note>so</note> &amp; "
          b"<w>gre</w>at"]
PLAIN = ["", "", "EN el principio crió Dios.", "God was good & great"]


def ztext(texts, cut=0):
    """One part of a SWORD module: its three files."""
    places, whole = b"", b"".join(texts)
    at = 0
    for text in texts:
        places += struct.pack("<IIH", 0, at, len(text))
        at += len(text)
    packed = zlib.compress(whole)
    return {"bzv": places, "bzs": struct.pack("<III", 0, len(packed), len(whole) - cut),
            "bzz": packed}


def module(old, new):
    return {f"./usr/share/x/{part}.{end}": content for part, files in (("ot", old), ("nt", new))
            for end, content in files.items()}


def tar(files):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def deb(files):
    found = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"),
                          ("data.tar.xz", lzma.compress(tar(files)))):
        found += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        found += content + b"\n" * (len(content) % 2)
    return found


def test_verses_of_a_debian_package():
    package = deb(module(ztext(VERSES), ztext(VERSES[2:])) | {"./etc/other": b"no"})
    files = data.from_deb(package, r"/[on]t\.bz[svz]$")
    assert len(files) == 6 and data.verses(files) == PLAIN + PLAIN[2:]


def test_what_is_broken_is_refused(monkeypatch):
    with pytest.raises(SystemExit, match="broken"):  # longer than it says: not unpacked further
        data.verses(module(ztext(VERSES, cut=5), ztext(VERSES)))
    with pytest.raises(SystemExit, match="too large"):
        data.verses(module(ztext(VERSES, cut=-(1 << 30)), ztext(VERSES)))
    with pytest.raises(SystemExit, match="no Debian package"):
        data.from_deb(b"PK", "")
    with pytest.raises(SystemExit, match="has no data"):
        data.from_deb(b"!<arch>\n", "")
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/b.txt", "x" * 100)
    assert data.from_wheel(wheel.getvalue(), "a/b.txt") == "x" * 100
    monkeypatch.setattr(data, "LARGEST", 99)
    with pytest.raises(SystemExit, match="too large"):
        data.from_wheel(wheel.getvalue(), "a/b.txt")
    assert data.from_tar(tar({"a": b"x" * 100, "b": b"y"}), ".") == {"b": b"y"}


def test_proteins_a_residue_a_token(tmp_path, monkeypatch):
    sequences = ["".join(random.Random(n).choices("ACDEFG", k=20)) for n in range(90)]
    fasta = "".join(f">tr|{n} a > b\n{s[:12]}\n{s[12:]}\n" for n, s in enumerate(sequences))
    file = "./usr/share/doc/mmseqs2/example-data/DB.fasta.gz"
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    monkeypatch.setattr(data, "fetched", lambda name: deb({
        file: gzip.compress(fasta.encode()), "./other/QUERY.fasta.gz": b"no"}))
    data.proteins()
    learned, held = ([row["text"] for row in csv.DictReader((tmp_path / name).open())]
                     for name in ("proteins.csv", "proteins-test.csv"))
    assert {*learned, *held} == {" ".join(s) for s in sequences[::3]} and learned and held
    monkeypatch.setattr(data, "LARGEST", 1000)
    monkeypatch.setattr(data, "from_deb", lambda *given: {file: gzip.compress(fasta.encode())})
    with pytest.raises(SystemExit, match="too large, or cut off"):
        data.proteins()


def test_an_archive_is_the_published_one(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / data.ARCHIVES["brown"][1]).write_bytes(b"another")
    with pytest.raises(SystemExit, match="SHA-256 differs"):
        data.fetched("brown")


def test_one_text_in_ten_is_for_tests():
    found = sum(data.test_row(f"text {n}") for n in range(5000))
    assert 400 < found < 620 and data.test_row("Aa") == data.test_row("aA")


def test_every_recipe_can_be_run():
    """Its command is one, its files of plans are read, and its figure stands with a band."""
    table = tomllib.loads((ROOT / "recipes" / "recipes.toml").read_text())
    for name, recipe in table.items():
        command, what = recipe["run"].split()[:2]
        assert recipe["measure"] in recipes.MEASURES and recipe["band"] > 0, name
        if command == "train":
            run = config.read(ROOT / "recipes" / what, {})
            assert run.new and run.whole_plan().steps > 0 and run.whole_recipe().rate > 0
        else:
            assert command == "tune" and {"--data", "--test"} <= {*recipe["run"].split()}


def test_a_figure_that_is_missed_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes.toml").write_text(
        '[one]\nrun = "tune"\nmeasure = "fixed"\nresult = 0.5\nband = 0.1\n'
        '[two]\nrun = "tune"\nmeasure = "fixed"\nresult = 0.7\nband = 0.1\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits.npz").write_text("")
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    monkeypatch.setitem(recipes.MEASURES, "fixed", lambda *given: (0.55, {"nothing": 0.1}))
    assert recipes.main(["one"]) == 0 and recipes.main([]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "fixed 0.550 (nothing 0.100)" in told[0] and "MISSED" not in told[1]
    assert "MISSED: 0.7 +- 0.1 is written" in told[2]
    with pytest.raises(SystemExit, match="no recipe is called"):
        recipes.main(["three"])


# What is measured


@pytest.mark.parametrize("found, wanted, score", [
    # of 1, 2 and 3 letters 2/3, 1/2 and 0 are right; longer ones are in neither
    (["abc"], ["abd"], 7 / 18),
    # precision 1, recall (2/4 + 1/3) / 2 = 5/12, which weighs 2 x 2 times as much
    (["ab"], ["abcd"], 5 * 5 / 12 / (4 + 5 / 12)),
    # spaces are no letters; counts are added up over the texts: (2+2)/5, (1+1)/3, (0)/1
    (["a b c", "xy"], ["abd", "xy"], (4 / 5 + 2 / 3 + 0) / 3),
    (["abcdefgh"], ["abcdefgh"], 1.0), (["abc"], ["xyz"], 0.0)])
def test_chrf_by_hand(found, wanted, score):
    """Popović (2015): the mean over 1 to 6 letters of precision and recall, beta 2."""
    assert translations(found, [[one] for one in wanted])["chrf"] == pytest.approx(100 * score)


def test_labels_are_held_against_the_commonest(tmp_path, monkeypatch):
    rows = {"a.jsonl": [(["a", "b"], ["X", "Y"]), (["a", "c"], ["X", "X"]), (["a"], ["Z"])],
            "b.jsonl": [(["a", "b", "b", "new"], ["Z", "Y", "Y", "X"])]}
    for name, some in rows.items():
        (tmp_path / name).write_text("".join(
            json.dumps({"tokens": words, "tags": tags}) + "\n" for words, tags in some))
    (tmp_path / "a.csv").write_text("text,label\na,X\nb,X\nc,Y\n")
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    monkeypatch.setattr(recipes, "mirada", lambda *given: {"metrics": {"test": {"accuracy": 0.5}}})
    assert recipes.accuracy({}, "--data a.jsonl --test b.jsonl".split(), tmp_path) == (
        0.5, {"always X": 0.25, "each word's commonest": 0.75})  # but a, which is X elsewhere
    assert recipes.accuracy({}, "--data a.csv --test a.csv".split(), tmp_path) == (
        0.5, {"always X": 2 / 3})


def test_an_answer_is_right_to_the_letter(tmp_path, monkeypatch, capsys):
    """Four questions: the model before gets one right, the tuned one three, the commonest two."""
    head, asked = "prompt,answer\n", ["q,one", "r,two", "s,one", "t,six"]
    (tmp_path / "a.csv").write_text(head + "".join(f"{n},one\n{n}x,two\n{n}y,one\n"
                                                  for n in range(3)))
    (tmp_path / "b.csv").write_text(head + "\n".join(asked))
    told = {"m": dict(q="One", r="two", s="", t="one"), "out": dict(q=" one", r="two", s="one\n",
                                                                   t="one")}
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    found = {"metrics": {"test": {"perplexity": 2.0}}}
    monkeypatch.setattr(recipes, "mirada", lambda *given: found)
    monkeypatch.setattr(mirada, "load", lambda path: Path(path).name)
    monkeypatch.setattr(tune, "measure", lambda *given: {"perplexity": 9.0})
    monkeypatch.setattr(generate_text, "text",
                        lambda model, talk, **ends: told[model][talk[-1]["content"]])
    words = "tune m --task chat --data a.csv --test b.csv".split()
    assert recipes.said({}, words, tmp_path / "out") == (0.75, {"before": 0.25, "always one": 0.5})
    assert "9.0 before, 2.00 now" in (shown := capsys.readouterr().out) and "q (one)" in shown


def test_the_lstm_reads_a_source_and_tells_the_target(monkeypatch):
    tokenizer = toys.tokenizer(["uno dos tres cuatro"], "unigram")
    model = toys.model("t5:tiny", tokenizer, layers=1)
    texts = ["uno dos", "dos uno", "tres cuatro", "cuatro tres"]
    pairs = seq2seq.Translate(toys.corpus(tokenizer, texts), 8, model)
    ids = [tokenizer.encode(text).ids for text in texts]
    told = lstm.Targets(pairs)
    assert told.rows == [(a + b, [IGNORED] * len(a) + b) for a, b in zip(*[iter(ids)] * 2,
                                                                      strict=True)]
    batch = told.batch(told.rows)
    model = baselines.build("lstm", vocab=tokenizer.size, d=16)
    wanted = token_loss(model(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:], 0.1)
    assert told.loss(model, batch)[0].item() == pytest.approx(wanted.item(), rel=1e-5)
    plan = Plan(steps=40, batch=2, dtype="float32")
    recurrent = lstm.train(pairs, tokenizer.size, plan, rate=2e-2)
    assert [lstm.write(recurrent, a, 1, 9) + [1] for a in ids[::2]] == ids[1::2]
    read = []
    monkeypatch.setattr(lstm, "write", lambda model, source, *ends: read.append(source) or [])
    assert lstm.translate(recurrent, pairs, tokenizer, "uno dos") == "" and read == ids[:1]
    assert lstm.translate(recurrent, pairs, tokenizer, "uno " * 20) == "" and len(read[1]) == 8
    monkeypatch.undo()
    with torch.no_grad():
        recurrent.out.bias[ids[0][0]] += 100  # now it never ends by itself
    assert lstm.write(recurrent, ids[0], 1, 5) == ids[0][:1] * 5


def test_the_lstm_goes_on_as_it_learned():
    """Step by step with a state, as all at once."""
    model = baselines.build("lstm", vocab=30, d=16, layers=2)
    made = lstm.write(model, [3, 4, 5], end=-1, most=6)
    logits = model(torch.tensor([[3, 4, 5, *made]])).logits[0, 2:-1]
    assert made == logits.argmax(-1).tolist()


def test_hidden_residues_are_measured(tmp_path, monkeypatch, capsys):
    """A family's config takes the mask of the tokenizer that is made; what is known without a
    model is each letter's share."""
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / "data" / f"{name}.csv").write_text(
            "text\n" + 300 * "\n".join([" ".join(16 * one) for one in "LLLM"] + [""]))
    out = tmp_path / "run"
    words = ["train", "esm:tiny", "--data", str(tmp_path / "data" / "a.csv"), "--steps", "40",
             "--length", "18", "--tokens", "16", "--rate", "1e-2"]
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    monkeypatch.setattr(recipes, "mirada", lambda words, out: cli.main(
        [*words, "--json", "--out", str(out)]))
    found, against = recipes.hidden({"test": "b.csv"}, words, out)
    assert json.loads(capsys.readouterr().out)["reason"] == "done"
    model = mirada.load(out / "model")
    assert model.config.mask == model.tokenizer.mask_id == 4
    # 3/4 L, 1/4 M: exp of the entropy is 1.755, if as many are hidden; its row says which
    assert against["frequencies"] == pytest.approx(1.755, rel=0.05) and 1.0 < found < 1.5
    # about 13 of 16 are seen: (13 + 150 x 3/4) / 163 = 0.77 of L, (13 + 150 / 4) / 163 = 0.31 of M
    assert against["of its row too"] == pytest.approx(
        math.exp(-0.75 * math.log(0.77) - 0.25 * math.log(0.31)), rel=0.05)
    assert against["of its row too"] < against["frequencies"] - 0.05
