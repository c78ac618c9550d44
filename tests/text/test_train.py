"""Tokenizers trained from texts, and the command that trains, cuts and joins."""

import json
import os
import subprocess
import sys

import pytest

from mirada import cli
from mirada.errors import MiradaError
from mirada.text import Tokenizer, train
from text import vocabularies as v

transformers = pytest.importorskip("transformers")

KINDS = {
    "bpe": ("<|endoftext|>",),
    "wordpiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "unigram": ("<pad>", "</s>", "<unk>"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("texts")
    for name, part in (("one.txt", v.sentences()[:1_000]), ("two.txt", v.sentences()[1_000:])):
        (folder / name).write_text("\n".join(part) + "\n")
    return [str(folder / "one.txt"), str(folder / "two.txt")]


@pytest.fixture(scope="module", params=KINDS)
def trained(request, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / request.param
    return request.param, train.train(files, request.param, 500, out, special=["<user>"]), out


@pytest.mark.scope("1.4.1")
def test_both_read_what_was_trained(trained):
    """Ids, pairs, offsets and text again, of ten thousand strings the training never saw."""
    kind, told, out = trained
    ours = Tokenizer.from_folder(out)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(out)
    assert ours.size == len(reference) == told.size <= 500 and told.lines == 3_000
    texts = list(v.corpus()[::2])
    for text, wanted in zip(texts, reference(texts)["input_ids"], strict=True):
        assert ours.encode(text).ids == wanted, text
    wanted = reference("el gato", "la casa", return_offsets_mapping=True,
                       return_token_type_ids=True)
    found = ours.encode("el gato", "la casa")
    assert (found.ids, found.offsets) == (wanted["input_ids"], wanted["offset_mapping"])
    assert found.type_ids == wanted["token_type_ids"]
    text = "corazón ¿qué? árbol"
    plain = "corazón ¿ qué? árbol" if kind == "wordpiece" else text
    assert ours.decode(ours.encode(text).ids) == plain


def test_its_special_tokens(trained):
    kind, _, out = trained
    ours = Tokenizer.from_folder(out)
    names = [*KINDS[kind], "<user>"]
    assert [ours.token(i) for i in range(len(names))] == names
    assert ours.special_ids == set(range(len(names)))
    assert ours.encode("a<user>b", special=False).ids.count(len(names) - 1) == 1
    if kind == "wordpiece":
        pair = ours.encode("el gato", "la casa")
        assert (pair.ids[0], pair.ids[-1], pair.type_ids[-1]) == (ours.cls_id, ours.sep_id, 1)
        assert ours.mask_id == 4 and ours.pad_id == 0
    else:
        assert ours.eos_ids == {names.index("</s>" if kind == "unigram" else "<|endoftext|>")}


def test_it_learned(trained):
    """Frequent words of the texts are one token; what it never saw is spelled or unknown."""
    kind, told, out = trained
    ours = Tokenizer.from_folder(out)
    for word in ("language", "tokenization"):
        assert len(ours.encode(f"a {word}", special=False).ids) <= 3, word
    unseen = ours.encode("☃", special=False, parse_special=False).ids
    assert len(unseen) == 3 if kind == "bpe" else ours.unk_id in unseen
    assert told.characters == sum(map(len, v.sentences())) + 3_000


def test_lowercase(files, tmp_path):
    train.train(files, "wordpiece", 300, tmp_path / "low", lowercase=True)
    ours = Tokenizer.from_folder(tmp_path / "low")
    assert ours.encode("CORAZÓN").ids == ours.encode("corazon").ids
    train.train(files, "wordpiece", 300, tmp_path / "kept")
    ours = Tokenizer.from_folder(tmp_path / "kept")
    assert ours.encode("Corazón").ids != ours.encode("corazon").ids


def test_another_process_makes_the_same(tmp_path):
    """Of texts with many ties between pieces, and letters that no piece holds."""
    file = tmp_path / "text.txt"
    inner = "abcdefghijklmnopqrst"
    words = [f"x{first}{second}" for first in inner for second in inner]
    file.write_text(" ".join(words * 3) + "\nñ«»æß∞\n")
    program = "import sys; from mirada.text.train import train; " + "".join(
        f"train([{str(file)!r}], {kind!r}, 300, f'{{sys.argv[1]}}/{kind}'); " for kind in KINDS)
    for seed in "01":
        subprocess.run([sys.executable, "-c", program, tmp_path / seed], check=True,
                       env=os.environ | {"PYTHONHASHSEED": seed})
    for kind in KINDS:
        one, other = (tmp_path / seed / kind / "tokenizer.json" for seed in "01")
        assert one.read_bytes() == other.read_bytes(), kind


WRONG = {  # what a user may do: (file's bytes, kind, size, what is said)
    "empty": (b"", "bpe", 300, "a.txt is empty"),
    "only white space": (b" \n\t\n", "bpe", 300, "only white space"),
    "latin-1": ("una\nni\xf1a\n".encode("latin-1"), "bpe", 300, r"a.txt, line 2: is no UTF-8"),
    "utf-16": ("una niña".encode("utf-16"), "unigram", 300, r"a.txt, line 1: is no UTF-8"),
    "below the bytes": (b"text", "bpe", 256, "256 bytes need 257"),
    "below the characters": (b"abcdefgh", "wordpiece", 12, "5 special tokens and the 8 different"),
    "below the pieces": (b"abcdefgh hgfedcba", "wordpiece", 14, "at least"),
    "unigram": (b"abcdefgh", "unigram", 9, "3 special tokens and the 8 different"),
    "no size": (b"text", "unigram", 0, "size 0 is too small"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_user_may_do_wrong(tmp_path, case):
    data, kind, size, says = WRONG[case]
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(MiradaError, match=says):
        train.train([str(tmp_path / "a.txt")], kind, size, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_holds_something(files, tmp_path):
    (tmp_path / "mine").mkdir()
    train.train(files[:1], "bpe", 300, tmp_path / "mine")  # an empty one is taken
    with pytest.raises(MiradaError, match="exists and is not an empty folder"):
        train.train(files[:1], "bpe", 300, tmp_path / "mine")
    with pytest.raises(MiradaError, match="exists and is not an empty folder"):
        train.train(files[:1], "bpe", 300, files[1])
    with pytest.raises(MiradaError, match="no tokenizer is of kind 'words'"):
        train.train(files, "words", 300, tmp_path / "other")


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["tokenizer", *words])
    return code, *capsys.readouterr()


def test_the_commands(files, tmp_path, capsys):
    out = str(tmp_path / "mine")
    code, said, _ = run(capsys, "train", *files, "--kind", "wordpiece", "--size", "400", "-o", out)
    ours = Tokenizer.from_folder(out)  # the texts have no 400 pieces
    assert code == 0 and 200 < ours.size < 400 and said == (
        f"{out}: wordpiece, {ours.size} tokens from 3,000 lines "
        f"({sum(map(len, v.sentences())) + 3_000:,} characters)\n")
    code, said, _ = run(capsys, "encode", out, "the cat", "--pair", "un niño")
    rows = [line.split() for line in said.splitlines()]
    assert rows[0] == ["id", "token", "at", "text"] and rows[1] == [str(ours.cls_id), "[CLS]"]
    assert [str(ours.id("niño")), "niño", "3-7", "niño"] in rows
    assert rows[-1] == [str(len(rows) - 2), "tokens"]
    code, said, _ = run(capsys, "encode", out, "the cat", "--json")
    told, wanted = json.loads(said), ours.encode("the cat")
    assert told["ids"] == wanted.ids and told["tokens"][0] == "[CLS]"
    assert told["offsets"] == [list(pair) for pair in wanted.offsets]
    code, said, _ = run(capsys, "encode", out, "the cat", "--no-special", "--json")
    assert json.loads(said)["ids"] == wanted.ids[1:-1]
    code, said, _ = run(capsys, "decode", out, *map(str, wanted.ids))
    assert (code, said) == (0, "the cat\n")
    code, said, _ = run(capsys, "decode", out, *map(str, wanted.ids), "--keep-special", "--json")
    assert json.loads(said)["text"] == "[CLS] the cat [SEP]"


def test_the_commands_refuse(files, tmp_path, capsys):
    out = str(tmp_path / "mine")
    code, _, said = run(capsys, "encode", out, "a")
    assert code == 2 and "no such folder or file" in said
    run(capsys, "train", *files, "--kind", "bpe", "--size", "300", "-o", out)
    code, _, said = run(capsys, "decode", out, "300")
    assert code == 2 and said == (
        "mirada: token id 300 is out of range: the tokenizer has 300\n")
    code, _, said = run(capsys, "encode", files[0], "a")
    assert code == 2 and "vocabulary" in said
    code, _, said = run(capsys, "train", str(tmp_path / "none.txt"), "--kind", "bpe", "--size",
                        "300", "-o", str(tmp_path / "x"))
    assert code == 2 and "none.txt: file: there is no such file" in said
    code, _, said = run(capsys, "train", str(tmp_path), "--kind", "bpe", "--size", "300", "-o",
                        str(tmp_path / "x"))
    assert code == 2 and "must be a regular file" in said
    code, _, said = run(capsys, "train", *files, "--kind", "bpe", "--size", "300", "--special", "",
                        "-o", str(tmp_path / "x"))
    assert code == 2 and "must have a character" in said and not (tmp_path / "x").exists()
    code, said, _ = run(capsys, "encode", out, "\x1b[31m")
    assert "\x1b" not in said and r"\x1b" in said
