"""What a run shows while it goes."""

import io

import pytest
import torch

import mirada
from mirada.train import terminal
from mirada.train.terminal import Terminal, flops

LINE = {"step": 3, "loss": 2.5, "rate": 3e-4, "norm": 0.75, "seconds": 0.5}


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_flops_are_counted_by_hand():
    model = mirada.build("gpt2:tiny", layers=2, d=16, heads=2, vocab=32, context=16)
    weights = 2 * (4 * 16 * 16 + 2 * 16 * 64) + 32 * 16  # of the blocks; the head, tied
    assert flops(model, 100, 8) == 100 * (6 * weights + 12 * 2 * 16 * 8)
    free = mirada.build("llama:tiny", layers=2)
    looked_up = sum(p.numel() for n, p in free.named_parameters() if ".embed." in n or p.ndim < 2)
    every = sum(p.numel() for p in free.parameters())
    assert flops(free, 10, 4) == 10 * (
        6 * (every - looked_up) + 12 * 2 * free.config.d * 4)


def test_on_a_terminal_it_says_how_it_goes(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(terminal, "peak", lambda dtype: 4e9)
    view = Terminal(10, 2, 1000, 1e9, torch.float32)
    assert view.words(LINE) == (
        "loss 2.500, rate 3.0e-04, norm 0.75, 2,000 tokens/s, 50% of the machine")
    view(LINE)
    view.say("3: 'uno dos'")
    view.close()
    said = screen.getvalue()
    assert "3/10" in said and "loss 2.500" in said and "3: 'uno dos'" in said


def test_elsewhere_it_is_silent_and_measures_nothing(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setattr(terminal, "peak", lambda dtype: pytest.fail("nobody looks"))
    view = Terminal(10, 0, 1000, 1e9, torch.float32)
    view(LINE)
    view.say("x")
    view.close()
    assert file.getvalue() == "" and "machine" not in view.words(LINE)


def test_the_peak_is_of_real_products():
    assert 1e8 < terminal.peak(torch.float32) < 1e15
