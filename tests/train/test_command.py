"""mirada train: from a text file to a folder that transformers loads, killed on the way or not."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import mirada
from mirada.cli import main
from mirada.errors import MiradaError
from mirada.train import checkpoint, config
from mirada.train.log import history

LINES = [f"El número {n} viene antes que el {n + 1}, y detrás del {n - 1}." for n in range(60)]
SMALL = ["--steps", "6", "--batch", "4", "--length", "16", "--tokens", "400", "--save", "2"]


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("\n".join(LINES))
    return str(file)


def test_from_a_text_to_a_folder_that_transformers_loads(book, tmp_path, capsys):
    out = tmp_path / "x"
    assert main(["train", "gpt2:tiny", "--data", book, *SMALL, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reason"] == "done" and told["loss"] == history(out)[-1]["loss"]
    theirs = AutoModelForCausalLM.from_pretrained(told["model"])
    ids = AutoTokenizer.from_pretrained(told["model"])("El número 7", return_tensors="pt").input_ids
    model = mirada.load(told["model"])
    assert ids[0].tolist() == model.tokenizer.encode("El número 7").ids
    with torch.no_grad():
        gap = (theirs(ids).logits - model(input_ids=ids).logits).abs().max()
    assert float(gap) < 1e-5 and theirs.config.eos_token_id == model.tokenizer.bos_id
    again = tmp_path / "y"  # from where that one ended, on records of a table
    table = tmp_path / "table.csv"
    table.write_text("n,said\n" + "".join(f'{n},"{line}"\n' for n, line in enumerate(LINES)))
    assert main(["train", told["model"], "--data", str(table), "--column", "said", *SMALL[:6],
                 "--out", str(again)]) == 0
    assert history(again)[0]["loss"] < history(out)[0]["loss"] - 0.05


def test_hidden_tokens_for_a_model_whose_head_tells_them(book, tmp_path):
    out = tmp_path / "x"
    assert main(["train", "bert:tiny", "--data", book, *SMALL, "--out", str(out)]) == 0
    theirs = AutoModelForMaskedLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert theirs.config.vocab_size == len(tokenizer) and tokenizer.mask_token == "[MASK]"
    _, _, objective = config.open_run(out)
    batch = objective.batch([objective.sample(0, __import__("random").Random(0))])
    assert tokenizer.mask_token_id in batch["input_ids"]


def test_a_file_says_it_all_and_words_come_before_it(book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(
        'model = "llama:tiny"\ndata = "book.txt"\nlength = 16\ntokens = 400\n'
        "[changes]\nlayers = 1\n[plan]\nsteps = 9\nbatch = 2\n"
        '[recipe]\npreset = "guide"\nbetas = [0.9, 0.9]\n')
    assert main(["train", "run.toml", "--steps", "2"]) == 0
    run = json.loads((tmp_path / "runs/llama-tiny-1/run.json").read_text())
    assert run["plan"]["steps"] == 2 and run["plan"]["batch"] == 2
    assert run["recipe"]["rate"] == 5e-5 and run["recipe"]["betas"] == [0.9, 0.9]
    assert mirada.load("runs/llama-tiny-1/model").config.layers == 1


WAITS = """
import signal
import sys
import time

from mirada.cli import main
from mirada.train.log import Folder

log = Folder.log

def waiting(self, line):
    log(self, line)
    handler = signal.getsignal(signal.SIGTERM)
    while line["step"] == 5 and signal.getsignal(signal.SIGTERM) is handler:
        time.sleep(0.002)  # for the first signal, which puts the former handler back

Folder.log = waiting
sys.exit(main(sys.argv[1:]))
"""


def test_weights_are_kept_in_32_bits_or_in_64(book, tmp_path):
    """Of a file in 16 bits too: small updates would be lost in them."""
    words = ["train", "gpt2:tiny", "--data", book, *SMALL, "--steps", "1", "--out"]
    assert main([*words, str(tmp_path / "a"), "--dtype", "float64"]) == 0
    model = mirada.load(tmp_path / "a" / "model")
    assert model.dtype == torch.float64
    mirada.save(model.to(torch.bfloat16), tmp_path / "half")
    assert main(["train", str(tmp_path / "half"), *words[2:], str(tmp_path / "b")]) == 0
    held = checkpoint.newest(tmp_path / "b" / "checkpoints").tensors["weights.safetensors"]
    assert {t.dtype for t in held.values()} == {torch.float32}


def test_a_disk_that_is_full_before_the_run_begins_leaves_its_name_free(
        book, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    words = ["train", "gpt2:tiny", "--data", book, *SMALL, "--steps", "1", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(config.corpus, "write", full)
        assert main([*words, str(tmp_path / "x")]) == 1
    assert "x could not be written: No space left" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "x")]) == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_resume_needs_the_folder_alone(book, tmp_path, end):
    words = ["train", "gpt2:tiny", "--data", book, *SMALL, "--steps", "12", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    out = tmp_path / "cut"
    process = subprocess.Popen([sys.executable, "-c", WAITS, *words, str(out)],
                               stdout=subprocess.PIPE, text=True)
    while len(history(out)) < 5 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(end)
    said = process.communicate()[0]
    assert len(history(out)) == 5 and not (out / "model").exists()
    assert checkpoint.steps(out / "checkpoints")[-1] == (5 if end == signal.SIGTERM else 4)
    if end == signal.SIGTERM:
        assert process.returncode == 0 and f"--resume {out}" in said
    (tmp_path / "book.txt").unlink()  # its tokens are in the folder
    assert main(["train", "--resume", str(out)]) == 0
    whole, cut = (mirada.load(tmp_path / name / "model") for name in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    assert [x["loss"] for x in history(out)] == [x["loss"] for x in history(tmp_path / "whole")]
    assert main(["train", "--resume", str(out)]) == 0  # done is done


def refused(capsys, *words) -> str:
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_what_a_user_may_do_wrong(book, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = str(tmp_path / "x")
    assert "name a model" in refused(capsys)
    assert "--data" in refused(capsys, "gpt2:tiny")
    assert "holds no run" in refused(capsys, "--resume", x)
    assert "leave out data" in refused(capsys, "--resume", x, "--data", book)
    assert "reads 256 tokens at most" in refused(capsys, "gpt2:tiny", "--data", book, "--length",
                                                 "999", "--out", x)
    assert not (tmp_path / "x").exists()
    config.create(config.Run("gpt2:tiny", (book,)), tmp_path / "x")
    assert f"--resume {x}" in refused(capsys, "gpt2:tiny", "--data", book, "--out", x)
    y = str(tmp_path / "y")
    assert "plain text does not train it" in refused(
        capsys, "t5:tiny", "--data", book, "--length", "16", "--out", y)
    assert "learns by objective 'causal'" in refused(
        capsys, "gpt2:tiny", "--data", book, "--objective", "masked", "--out", y + "2")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("bien\naño\n".encode("latin1"))
    assert "line 2: is no UTF-8" in refused(capsys, "gpt2:tiny", "--data", str(latin), "--out",
                                            y + "3")
    assert "no column 'text'" in refused(capsys, "gpt2:tiny", "--data", _csv(tmp_path), "--out",
                                         y + "4")
    assert "rate is -1.0" in refused(capsys, "gpt2:tiny", "--data", book, "--rate", "-1", "--out",
                                     y + "5")
    assert not (tmp_path / "y5").exists()
    (tmp_path / "bad.toml").write_text('model = "gpt2:tiny"\ndata = "book.txt"\nlenght = 3\n')
    assert "nothing is called 'lenght'" in refused(capsys, "bad.toml")
    (tmp_path / "bad.toml").write_text('model = "gpt2:tiny"\n[plan]\nsteps = "ten"\n')
    assert "plan: steps is 'ten'; it must be a whole number" in refused(
        capsys, "bad.toml", "--data", book)


def _csv(folder) -> str:
    file = folder / "t.csv"
    file.write_text("said\nhola\n")
    return str(file)


def test_data_that_changed_before_they_were_read(book, tmp_path):
    out = tmp_path / "x"
    config.create(config.Run("gpt2:tiny", (book,), length=16, tokens=400), out)
    with open(book, "a") as file:
        file.write("more")
    with pytest.raises(MiradaError, match="is not the file that"):
        config.open_run(out)
