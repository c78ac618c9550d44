"""What llama.cpp said of our files, held where it is not installed: same bytes, same tokens."""

import pytest
import torch

import mirada
from peers.golden import ANSWERS, FILES, digest, greedy, write


@pytest.mark.scope("1.15.9")
@pytest.mark.parametrize("name", FILES)
def test_the_file_it_read_is_the_one_we_write(name, real, tmp_path):
    path = write(name, tmp_path, real)
    assert digest(path) == ANSWERS[name]["sha256"], "other bytes: ask llama.cpp anew (golden.py)"
    ours, _ = greedy(mirada.load(path, dtype=torch.float32), FILES[name], 6)
    assert ours == ANSWERS[name]["tokens"][:6] and len(set(ours)) > 1
