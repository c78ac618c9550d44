"""Processors equal to the reference's of the same name; draws that follow their distribution."""

import os
import subprocess
import sys

import pytest
import torch
from transformers.generation import logits_process as reference

import mirada
from generate.pairs import GPT2, prompts
from mirada.generate import sampling
from mirada.generate.options import Options
from parity.harness import pair

PROCESSORS = {  # name -> (ours, the reference's)
    "temperature": [(lambda s, i, t=t: sampling.process(s, i, asked(temperature=t), 0),
                     reference.TemperatureLogitsWarper(t)) for t in (0.3, 1.0, 2.5)],
    "top_k": [(lambda s, i, k=k: sampling.top_k(s, k), reference.TopKLogitsWarper(k))
              for k in (1, 2, 7, 40, 500)],
    "top_p": [(lambda s, i, p=p: sampling.top_p(s, p), reference.TopPLogitsWarper(p))
              for p in (1e-9, 0.01, 0.5, 0.9, 0.999, 1.0)],
    "min_p": [(lambda s, i, p=p: sampling.min_p(s, p), reference.MinPLogitsWarper(p))
              for p in (0.0, 0.02, 0.5, 1.0)],
    "repetition": [(lambda s, i, p=p: sampling.repetition_penalty(s, i, p),
                    reference.RepetitionPenaltyLogitsProcessor(p)) for p in (0.5, 1.2, 3.0)],
    "ngram": [(lambda s, i, n=n: sampling.no_repeat_ngram(s, i, n),
               reference.NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3, 30, 31)],
    "ban": [(lambda s, i: sampling.ban(s, (3, 8)),
             reference.MinNewTokensLengthLogitsProcessor(30, 5, [3, 8]))],
}


def asked(**options) -> Options:
    return Options(**({"do_sample": True, "eos_token_id": ()} | options))


def cases(generator):
    """Scores (4, 50): spread out, flat with ties, one token far ahead, some forbidden; and ids."""
    ids = torch.randint(0, 6, (4, 30), generator=generator)
    scores = torch.randn(4, 50, generator=generator) * 3
    yield ids, scores
    yield torch.full_like(ids, 7), torch.zeros(4, 50)
    yield ids, scores.round()
    yield ids, scores.index_fill(1, torch.tensor([7]), 200.0)
    yield ids, scores.index_fill(1, torch.arange(10, 40), -torch.inf)


@pytest.mark.scope("1.15.2")
@pytest.mark.parametrize("name", PROCESSORS)
def test_each_processor_is_the_references(name):
    changed = 0
    for ours, theirs in PROCESSORS[name]:
        for ids, scores in cases(torch.Generator().manual_seed(3)):
            got, wanted = ours(scores, ids), theirs(ids, scores.clone())
            assert torch.equal(got, wanted)
            assert got.isfinite().any(-1).all()
            changed += not torch.equal(got, scores)
    assert changed


def test_repetition_penalty_does_not_count_pads():
    generator = torch.Generator().manual_seed(5)
    ids, scores = torch.randint(0, 50, (3, 9), generator=generator), torch.randn(3, 50)
    first = torch.tensor([0, 4, 8])
    theirs = reference.RepetitionPenaltyLogitsProcessor(1.7, prompt_ignore_length=first)
    ours = sampling.repetition_penalty(scores, ids, 1.7, first)
    assert torch.equal(ours, theirs(ids, scores.clone()))
    assert not torch.equal(ours, sampling.repetition_penalty(scores, ids, 1.7))


def test_all_processors_in_the_references_order():
    both, batch = pair(GPT2), prompts(GPT2, 2)
    options = dict(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=3,
                   temperature=0.6, top_k=20, top_p=0.8, min_p=0.05, do_sample=True,
                   eos_token_id=[4, 9])
    settings = both.theirs.generation_config.__class__(**options, num_beams=1)
    settings._eos_token_tensor = torch.tensor([4, 9])
    theirs = both.theirs._get_logits_processor(
        settings, input_ids_seq_length=8, device="cpu",
        model_kwargs={"attention_mask": batch["attention_mask"]})
    assert len(theirs) == 7
    first = batch["attention_mask"].argmax(1)
    ours = Options.read(both.ours, options)
    for new in (0, 5):
        more = torch.randint(3, 61, (3, new))
        ids, scores = torch.cat([batch["input_ids"], more], 1), torch.randn(3, 61).double() * 4
        got = sampling.process(scores, ids, ours, new, first)
        torch.testing.assert_close(got, theirs(ids, scores.clone()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [1.0, 1.0, -5.0], [-torch.inf, 2.0, 2.0]])
def test_the_likeliest_token_is_always_kept(scores):
    scores = torch.tensor([scores])
    for kept in (sampling.top_p(scores, 1e-30), sampling.min_p(scores, 1.0),
                 sampling.top_k(scores, 1)):
        assert kept.max() == scores.max()


def p_value(counts: torch.Tensor, chances: torch.Tensor) -> float:
    """Of Pearson's chi-square; tokens with few expected draws are counted as one."""
    expected = chances * counts.sum()
    rare = expected < 5
    assert counts[chances == 0].sum() == 0, "a forbidden token was drawn"
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2.0).double(),
                                         statistic / 2))


@pytest.mark.scope("1.15.2")
@pytest.mark.parametrize("options", [
    {"temperature": 1.0}, {"temperature": 0.4}, {"top_k": 8}, {"top_p": 0.7}, {"min_p": 0.1},
    {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.8}], ids=str)
def test_draws_follow_the_distribution(options):
    both, ids = pair(GPT2), torch.tensor([[5, 6, 7, 8]])
    drawn = both.ours.generate(ids, max_new_tokens=1, num_return_sequences=20_000, seed=17,
                               **options)
    assert torch.equal(drawn[:, :4], ids.expand(20_000, 4))
    counts = torch.bincount(drawn[:, 4], minlength=61).double()
    settings = both.theirs.generation_config.__class__(do_sample=True, num_beams=1, **options)
    processors = both.theirs._get_logits_processor(settings, input_ids_seq_length=4)
    scores = processors(ids, both.ours(ids).logits[:, -1].detach())
    assert p_value(counts, scores[0].softmax(-1)) > 1e-3
    warmer = (scores / 1.15)[0].softmax(-1)  # a slightly different one is told apart
    assert p_value(counts, warmer) < 1e-6


@pytest.mark.scope("1.15.2")
def test_seeds():
    model = mirada.build("gpt2", size="tiny", seed=1)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (model.generate(ids, temperature=1.0, seed=s) for s in (3, 3, 4))
    free = [model.generate(ids, temperature=1.0) for _ in range(2)]
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not torch.equal(*free)
    assert torch.equal(torch.get_rng_state(), before)


def test_several_samples_a_prompt_stand_together():
    model = mirada.build("gpt2", size="tiny", seed=1)
    ids = torch.tensor([[0, 5, 6], [8, 9, 10]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    drawn = model.generate(ids, mask, top_k=50, num_return_sequences=3, seed=1)
    assert torch.equal(drawn[:, :3], ids.repeat_interleave(3, 0))
    assert len({tuple(row) for row in drawn.tolist()}) == 6
    least = model.generate(ids, mask, top_k=1, num_return_sequences=2, seed=1)
    assert torch.equal(least, model.generate(ids, mask).repeat_interleave(2, 0))


def test_a_generator_of_its_own():
    a, b = sampling.generator(5, "cpu"), sampling.generator(None, "cpu")
    assert a.initial_seed() == 5 and b is not torch.default_generator


THREADS = """
import time, torch
from mirada.generate import sampling
torch.set_num_threads(2)
scores = torch.zeros(8, 49152)
scores[:, 7] = 1.0
def others(work):
    work()
    time.sleep(0.05)  # what work() began is over
    before = time.process_time() - time.thread_time()
    for _ in range(30):
        work()
    time.sleep(0.05)
    return time.process_time() - time.thread_time() - before
alone = others(lambda: sampling.check(scores))
print(alone, others(lambda: scores.max(-1)), sampling.check(scores).tolist() == [7] * 8)
"""


def test_a_greedy_choice_wakes_none_of_torchs_threads():
    """They would spin on the cores that the native runtime needs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP")}
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True,
                          timeout=60, env=environment)
    alone, parallel, right = done.stdout.split()
    assert right == "True", done.stderr
    assert float(alone) < 1e-3 and float(parallel) > 5e-3, "torch's own takes another thread's time"
