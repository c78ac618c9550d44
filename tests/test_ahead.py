"""What is done beside the import of torch: it must be there, be right, and hide no mistake."""

import os
import subprocess
import sys

import torch

import mirada
from mirada import ahead, cli, shelf
from mirada.text import chat
from mirada.text.tokenizer import Tokenizer
from mirada.weights import ggufhead

ALONE = """
import sys
from mirada import ahead, shelf
from mirada.text import chat
begun = ahead.Ahead("smollm2", True)
assert "torch" not in sys.modules
import torch
ids = begun.tokenizer.encode("Hello, world").ids
print(ids, chat._child is not None, bool(torch.ones(2) @ torch.ones(2) == 2))
"""


def test_the_vocabulary_is_read_before_torch_is_there(real):
    """With the linker at work meanwhile; torch then runs as ever, and templates have a process."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    ids = Tokenizer.from_file(shelf.place("smollm2")).encode("Hello, world").ids
    assert done.stdout.split("\n")[0] == f"{ids} True True"


def test_a_header_is_parsed_once_while_somebody_holds_it(real, monkeypatch):
    path = real("smollm2")
    parsed = []
    parse = ggufhead._parse
    monkeypatch.setattr(ggufhead, "_parse", lambda reader: parsed.append(1) or parse(reader))
    with open(path, "rb") as file:
        held = ggufhead.read(file, path)
    model = mirada.load(path)
    assert len(parsed) == 1 and model.tokenizer.size == len(held.metadata["tokenizer.ggml.tokens"])
    assert len(parsed) == 1
    del held, model
    with open(path, "rb") as file:
        ggufhead.read(file, path)
    assert len(parsed) == 2


def test_a_bad_file_is_told_by_the_loading(tmp_path, capsys, monkeypatch):
    """Reading ahead says nothing of it, so that it is said once."""
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(ahead, "_link", lambda: None)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(40))
    begun = ahead.Ahead(str(path), True)
    missing = ahead.Ahead(str(tmp_path / "nothing"), True)
    assert begun.tokenizer is None and missing.tokenizer is None
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert cli.main(["run", str(path), "hello"]) == 2
    assert capsys.readouterr().err.count("version") == 1


def test_torchs_threads_spin_briefly_beside_the_runtime():
    """Unless somebody has said how long."""
    bare = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    for said, holds in (({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        words = "import os, mirada; print(os.environ['GOMP_SPINCOUNT'])"
        done = subprocess.run([sys.executable, "-c", words], env=bare | said, capture_output=True,
                              text=True, check=True)
        assert done.stdout.strip() == holds


def test_the_child_is_started_once():
    chat.warm()
    first = chat._child
    chat.warm()
    assert chat._child is first
    chat.stop()
