"""The commands as a person uses them: what they print, what they say of mistakes, how they exit."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import mirada
from mirada import cli
from mirada.commands import run as run_command
from mirada.commands import verify as verify_command
from mirada.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory, real):
    """A small GPT-2 of random weights with MiniLM's tokenizer, in a folder."""
    model = mirada.build("gpt2", size="tiny", seed=4, vocab=30522, context=64)
    model.tokenizer = Tokenizer.from_folder(real("minilm"))
    return mirada.save(model, tmp_path_factory.mktemp("cli") / "model")


def command(*words: str) -> int:
    try:
        return cli.main(list(map(str, words)))
    except SystemExit as left:  # argparse
        return left.code


def refused(capsys, *words: str, code: int = 2) -> str:
    """The one sentence that a mistake gets."""
    assert command(*words) == code
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1 and said.err.startswith("mirada: "), said.err
    return said.err


def test_run_prints_the_answer_and_its_figures(saved, capsys):
    assert command("run", saved, "the cat", "-n", "5") == 0
    said = capsys.readouterr()
    assert said.out.strip() and "tokens/s" in said.err
    assert command("run", saved, "the cat", "-n", "5", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["ids"]) == 5 and data["prompt_tokens"] == 4
    assert data["finish_reason"] == "length"


def test_run_is_seeded_and_beams_work(saved, capsys):
    def out(*more):
        assert command("run", saved, "the cat", "-n", "6", *more) == 0
        return capsys.readouterr().out

    assert out("--temperature", "2", "--seed", "1") == out("--temperature", "2", "--seed", "1")
    assert out("--temperature", "2", "--seed", "1") != out("--temperature", "2", "--seed", "2")
    assert out("--temperature", "0") == out()
    assert out("--num-beams", "3")


def test_run_reads_stdin(saved, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat"))
    assert command("run", saved, "-", "-n", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == 4


def test_look_draws_and_says(saved, tmp_path, capsys):
    out = tmp_path / "map.png"
    assert command("look", saved, "the cat drank milk", "-o", out, "--layer", "1") == 0
    assert "strongest links" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1
    assert command("look", saved, "the cat drank milk", "-o", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["links"][0]["from"] in found["queries"] and found["selfcheck"] < 1e-4


@pytest.mark.parametrize("words", [("describe", "gpt2:tiny"), ("describe", "gpt3:175b"),
                                   ("diff", "gpt2:tiny", "bert:tiny"), ("models",)])
def test_what_needs_no_weights(words, capsys):
    assert command(*words) == 0
    assert len(capsys.readouterr().out.splitlines()) > 10
    assert command(*words, "--json") == 0
    json.loads(capsys.readouterr().out)


def test_verify_exits_1_where_the_model_is_another(saved, tmp_path, capsys, monkeypatch):
    assert command("verify", saved) == 0
    assert "all good" in capsys.readouterr().out
    load = verify_command.load

    def broken(args):
        model = load(args)
        with torch.no_grad():
            model.body.blocks[1].mlp.f.up.bias[3] += 1e-3
        return model

    monkeypatch.setattr(verify_command, "load", broken)
    assert command("verify", saved) == 1
    assert "blocks.1.mlp.f.up.bias" in capsys.readouterr().out


def test_files_that_cannot_be(saved, tmp_path, capsys):
    assert "no such folder" in refused(capsys, "run", "nowhere", "hello")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in refused(capsys, "verify", empty)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    assert ".gguf" in refused(capsys, "describe", text)
    gguf = tmp_path / "foreign.gguf"
    gguf.write_bytes(b"PK\x03\x04 not this")
    assert "foreign.gguf" in refused(capsys, "describe", gguf)
    cut = tmp_path / "cut"
    shutil.copytree(saved, cut)
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in refused(capsys, "run", cut, "hello")
    (cut / "model.safetensors").unlink()
    assert "model.safetensors" in refused(capsys, "run", cut, "hello")


@pytest.mark.parametrize("change, said", [
    ({"model_type": "gpt9"}, "gpt9"), ({"n_embd": 1 << 40}, "n_embd"), ({"n_head": 7}, "heads"),
    ({"n_layer": None}, "n_layer"), ({"gap_size": 3}, "--ignore gap_size"),
    ({"n_embd": 128}, "does not fit"), ({"architectures": ["GPT2ForPoetry"]}, "GPT2ForPoetry"),
])
def test_configs_that_cannot_be(saved, tmp_path, capsys, change, said):
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    raw = json.loads((other / "config.json").read_text()) | change
    (other / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    assert said in refused(capsys, "run", other, "hello")


def test_an_unknown_key_can_be_ignored(saved, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    raw = json.loads((other / "config.json").read_text()) | {"gap_size": 3}
    (other / "config.json").write_text(json.dumps(raw))
    assert command("describe", other, "--ignore", "gap_size") == 0
    assert "gap_size" in capsys.readouterr().out


@pytest.mark.parametrize("words, said", [
    (("", ), "empty"), (("hi", "--temperature", "-1"), "temperature"),
    (("hi", "--top-p", "2"), "top_p"), (("hi", "--top-k", "0"), "top_k"),
    (("hi", "-n", "0"), "max_new_tokens"), (("hi", "--num-beams", "0"), "num_beams"),
    (("word " * 100,), "64"), (("hi", "--system", "be kind"), "chat template"),
])
def test_prompts_and_options_that_cannot_be(saved, capsys, words, said):
    assert said in refused(capsys, "run", saved, *words)


@pytest.mark.parametrize("words, said", [
    (("", ), "empty"), (("hi", "--layer", "9"), "layer 9"), (("hi", "--head", "44"), "head 44"),
    (("hi", "-o", "nowhere/x.png"), "nowhere"), (("hi", "-o", "x.exe"), ".png"),
    (("hi", "--stack", "cross"), "cross"), (("word " * 100,), "64"),
])
def test_looks_that_cannot_be(saved, capsys, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "look", saved, *words)
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_a_model_that_does_not_write(real, capsys):
    assert "does not write" in refused(capsys, "run", real("minilm"), "hello")


def test_chat_holds_a_conversation(real, capsys, monkeypatch):
    said = iter(["Say yes.", "/reset", "Say no.", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: (print(prompt), next(said))[1])
    assert command("chat", real("smollm2"), "-n", "3") == 0
    shown = capsys.readouterr()
    assert "[0/8192 tokens]" in shown.out and shown.err.count("tokens/s") == 2


def test_debug_shows_the_traceback(saved):
    with pytest.raises(mirada.MiradaError):
        cli.main(["run", str(saved), "", "--debug"])


def test_help_loads_nothing_heavy():
    source = ("import sys\nfrom mirada import cli\ntry:\n    cli.main(['--help'])\n"
              "except SystemExit:\n    pass\n"
              "print(sorted({'torch', 'numpy', 'tokenizers', 'matplotlib'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]") and "COMMAND" in done.stdout


def test_interrupted_is_130(saved, monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt
    monkeypatch.setattr(run_command, "load", interrupted)
    assert command("run", saved, "hello") == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_ended_leaves_no_temporary_file(saved, tmp_path, number):
    """While a child process copies a torch file into a folder of its own."""
    for name in ("pickled", "aside"):
        (tmp_path / name).mkdir()
    shutil.copy(saved / "config.json", tmp_path / "pickled")
    torch.save({n: x.contiguous() for n, x in load_file(saved / "model.safetensors").items()},
               tmp_path / "pickled" / "pytorch_model.bin")
    program = ("import signal, sys; from mirada.cli import main; "  # a shell's & ignores SIGINT
               "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())")
    process = subprocess.Popen(
        [sys.executable, "-c", program, "convert", tmp_path / "pickled", tmp_path / "out"],
        env=os.environ | {"TMPDIR": str(tmp_path / "aside")}, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "aside").glob("mirada-*")):
        time.sleep(0.002)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert not list((tmp_path / "aside").glob("mirada-*")) and not (tmp_path / "out").exists()
