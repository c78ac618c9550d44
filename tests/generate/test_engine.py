"""The engine: every answer is the one its prompt gets alone, whatever goes on beside it."""

import random
import threading
import time

import pytest
import torch

import mirada
from mirada.edit import lower
from mirada.edit.small import quantize
from mirada.errors import MiradaError, WorkFailed
from mirada.generate.engine import Engine
from mirada.generate.pool import Pool
from mirada.kernels import native

FAMILIES = ("mistral", "gemma2", "mixtral")  # every family, in short: test_every_path.py


def model_of(family: str):
    torch.manual_seed(0)
    return mirada.build(f"{family}:tiny").double().eval()


@pytest.fixture(scope="module")
def llama():
    return model_of("llama")


def prompts_for(model, count: int, seed: int, longest: int = 60) -> list[list[int]]:
    draw = random.Random(seed)
    prompts = [[draw.randrange(model.config.vocab) for _ in range(draw.randint(1, longest))]
               for _ in range(count)]
    for at in range(0, count, 3):  # a third begin alike
        prompts[at] = prompts[0] + prompts[at]
    return prompts


def solo(model, ids: list[int], **options) -> list[int]:
    return model.generate(ids, **options)[0, len(ids):].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_is_the_one_it_gets_alone(family):
    model = model_of(family)
    prompts = prompts_for(model, 6, seed=3, longest=30)
    alone = [solo(model, ids, max_new_tokens=8) for ids in prompts]
    engine = Engine(model, tokens=256, rows=4, chunk=16, block=8)
    assert engine.generate(prompts, max_new_tokens=8) == alone
    assert engine.pool.free == 32 and not engine.busy


def test_the_native_program_serves_too():
    if native.missing():
        pytest.skip(native.missing())
    torch.manual_seed(0)
    model = quantize(mirada.build("llama:tiny"), "Q8_0")
    lower.attach(model)
    prompts = prompts_for(model, 12, seed=3, longest=80)
    alone = [solo(model, ids, max_new_tokens=8) for ids in prompts]
    engine = Engine(model, tokens=1024, rows=4, chunk=48)
    assert isinstance(engine.runner, native.Native)
    assert engine.generate(prompts, max_new_tokens=8) == alone
    assert engine.pool.free == 1024 // native.Native.block


def rounds(model, count: int, first: int = 0) -> None:
    prompts = prompts_for(model, 32, seed=11)
    lengths = [1 + 7 * at % 13 for at in range(32)]
    alone = [solo(model, p, max_new_tokens=n) for p, n in zip(prompts, lengths, strict=True)]
    engine = Engine(model, tokens=512, rows=9, chunk=32, block=8)
    for seed in range(first, first + count):
        order = random.Random(seed).sample(range(32), 32)
        requests = {at: engine.submit(prompts[at], max_new_tokens=lengths[at], user=str(at % 3))
                    for at in order}
        assert [list(requests[at]) for at in range(32)] == alone
    assert engine.pool.free == 64


def test_thirty_two_prompts_at_once(llama):
    rounds(llama, 3)


@pytest.mark.slow
def test_thirty_two_prompts_at_once_fifty_times(llama):
    rounds(llama, 50, first=3)


def test_samples_are_those_of_their_seed(llama):
    prompts = prompts_for(llama, 5, seed=2)
    options = [dict(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=seed) for seed in range(5)]
    engine = Engine(llama, tokens=512, rows=3, chunk=16, block=8)
    requests = [engine.submit(p, **o) for p, o in zip(prompts, options, strict=True)]
    assert [list(r) for r in requests] == [
        solo(llama, p, **o) for p, o in zip(prompts, options, strict=True)]


def test_options_are_each_request_s_own(llama):
    ids = prompts_for(llama, 2, seed=5)[1]
    engine = Engine(llama, tokens=512, rows=4, chunk=16, block=8)
    given = [{}, {"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1},
             {"eos_token_id": solo(llama, ids, max_new_tokens=3)[2]}]
    requests = [engine.submit(ids, max_new_tokens=9, **more) for more in given]
    assert [list(r) for r in requests] == [solo(llama, ids, max_new_tokens=9, **m) for m in given]
    assert [r.reason for r in requests] == ["length", "length", "length", "eos"]


def test_a_beginning_is_read_once(llama):
    engine = Engine(llama, tokens=512, rows=4, chunk=64, block=8)
    shared, tails = list(range(1, 41)), ([50, 51], [60, 61, 62])
    read: list[int] = []
    step = engine.runner.step
    engine.runner.step = lambda ids, *rest: read.append(len(ids)) or step(ids, *rest)
    first = list(engine.submit(shared + tails[0], max_new_tokens=2))
    second = list(engine.submit(shared + tails[1], max_new_tokens=2))
    assert read == [42, 1, 3, 1]  # the second time, only its tail
    assert first == solo(llama, shared + tails[0], max_new_tokens=2)
    assert second == solo(llama, shared + tails[1], max_new_tokens=2)
    assert list(engine.submit(shared, max_new_tokens=1)) == solo(llama, shared, max_new_tokens=1)
    assert read[-1] == 8  # a token at least must be read: the last block is


def test_too_little_room_sends_the_newest_back(llama):
    prompts = [list(range(at, at + 20)) for at in range(4)]
    engine = Engine(llama, tokens=80, rows=4, chunk=64, block=8)
    sent_back = []
    forget = engine._forget
    engine._forget = lambda r: sent_back.append(r.reason) or forget(r)
    got = engine.generate(prompts, max_new_tokens=40)
    assert None in sent_back  # one that had not ended
    assert got == [solo(llama, p, max_new_tokens=40) for p in prompts]
    assert engine.pool.free == 10


def test_a_long_prompt_holds_nobody_up(llama):
    engine = Engine(llama, tokens=512, rows=4, chunk=16, block=8)
    long = engine.submit(list(range(200)), max_new_tokens=2)
    short = engine.submit([1, 2, 3], max_new_tokens=2)
    engine.step()
    assert len(short.new) == 1 and not long.new
    steps = 1
    while not long.new:
        engine.step()
        steps += 1
    assert steps <= 14  # 200 tokens, 16 a step but for what the short one took


def test_users_take_turns(llama):
    engine = Engine(llama, tokens=512, rows=1, chunk=16, block=8)
    many = [engine.submit([at], max_new_tokens=1, user="a") for at in range(5)]
    one = engine.submit([9], max_new_tokens=1, user="b")
    engine.step()
    engine.step()
    assert one.reason == "length" and [len(r.new) for r in many] == [1, 0, 0, 0, 0]


def test_cancelled_requests_leave_nothing_behind(llama):
    draw = random.Random(7)
    engine = Engine(llama, tokens=256, rows=6, chunk=32, block=8)
    prompts = prompts_for(llama, 9, seed=1, longest=40)
    alone = [solo(llama, p, max_new_tokens=6) for p in prompts]
    kept = []
    for cancelled in range(500):
        at = draw.randrange(9)
        victim = engine.submit(prompts[at], max_new_tokens=6)
        if cancelled % 50 == 0:
            kept.append((engine.submit(prompts[at], max_new_tokens=6), alone[at]))
        for _ in range(draw.randrange(3)):
            engine.step()
        victim.cancel()
        assert victim.reason in ("cancelled", "length") and not victim.table
        assert victim.new == alone[at][: len(victim.new)]
    assert [list(r) for r, _ in kept] == [a for _, a in kept]
    assert engine.pool.free == 32 and not any(engine.pool.holders) and not engine.busy


def test_many_threads(llama):
    engine = Engine(llama, tokens=256, rows=4, chunk=32, block=8)
    prompts = prompts_for(llama, 8, seed=4, longest=20)
    got = [[] for _ in prompts]

    def ask(at: int) -> None:
        got[at] += list(engine.submit(prompts[at], max_new_tokens=5, user=str(at)))

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == [solo(llama, p, max_new_tokens=5) for p in prompts]


def test_one_that_fails_fails_alone(llama):
    engine = Engine(llama, tokens=256, rows=4, chunk=32, block=8)
    every = list(range(llama.config.vocab))
    bad = engine.submit([1, 2], max_new_tokens=4, suppress_tokens=every)
    good = engine.submit([1, 2, 3], max_new_tokens=4)
    assert list(good) == solo(llama, [1, 2, 3], max_new_tokens=4)
    with pytest.raises(WorkFailed, match="no token may come next"):
        list(bad)
    assert bad.reason == "failed" and engine.pool.free == 32


def test_when_the_model_breaks_nobody_waits_for_ever(llama):
    engine = Engine(llama, tokens=256, rows=4, chunk=32, block=8)
    step, engine.runner.step = engine.runner.step, lambda *a: 1 / 0
    request = engine.submit([1, 2], max_new_tokens=4)
    with pytest.raises(ZeroDivisionError):
        engine.step()
    with pytest.raises(ZeroDivisionError):
        list(request)
    engine.runner.step = step
    assert engine.pool.free == 32
    assert engine.generate([[1, 2]], max_new_tokens=4) == [solo(llama, [1, 2], max_new_tokens=4)]


@pytest.mark.parametrize(("ids", "options", "says"), [
    ([], {}, "one token id or more"),
    ([1, 99999], {}, "vocabulary"),
    ([1], {"num_beams": 2}, "one answer a prompt"),
    ([1] * 300, {}, "no room"),
    ([1] * 100, {"max_new_tokens": 100}, "cache holds 128"),
    ([1], {"max_tokens": 3}, "max_new_tokens"),
])
def test_what_cannot_be_served(llama, ids, options, says):
    engine = Engine(llama, tokens=128, rows=2, chunk=32, block=8)
    with pytest.raises(MiradaError, match=says):
        engine.submit(ids, **options)
    assert not engine.busy


def test_engines_that_cannot_be(llama):
    with pytest.raises(MiradaError, match="serves decoders"):
        Engine(mirada.build("t5:tiny"))
    with pytest.raises(MiradaError, match="cannot be"):
        Engine(llama, rows=64, chunk=32)


def test_a_block_s_name_dies_with_what_it_held():
    pool = Pool(2, 2)
    first = [pool.take(), pool.take()]
    pool.name(first, 0, [1, 2])
    pool.name(first, 1, [3, 4])
    assert pool.find([1, 2, 3, 4, 5]) == first
    pool.release(first)
    assert pool.find([1, 2, 3, 4]) == first and pool.free == 2
    other = [pool.take()]  # the block held the end: the beginning is kept longer
    assert pool.find([1, 2, 3, 4]) == first[:1]
    pool.name(other, 0, [3, 4])  # the same tokens at another place are another name
    assert pool.find([1, 2, 3, 4]) == first[:1] and pool.find([3, 4]) == other


@pytest.mark.slow
def test_five_minutes_of_random_arrivals(llama):
    draw = random.Random(time.monotonic_ns())
    engine = Engine(llama, tokens=1024, rows=16, chunk=64, block=8)
    end, under_way, served = time.monotonic() + 300, [], 0
    while time.monotonic() < end:
        if draw.random() < 0.3:
            ids = [draw.randrange(llama.config.vocab) for _ in range(draw.randint(1, 200))]
            under_way.append(engine.submit(ids, max_new_tokens=draw.randint(1, 50),
                                           user=str(draw.randrange(4))))
        if under_way and draw.random() < 0.02:
            draw.choice(under_way).cancel()
        engine.step()
        for request in [r for r in under_way if r.reason in ("length", "context", "eos")]:
            if draw.random() < 0.02:
                assert request.new == solo(llama, request.ids, max_new_tokens=request.room)
            served += 1
        under_way = [r for r in under_way if r.reason is None]
    for request in under_way:
        request.cancel()
    assert served > 100 and engine.pool.free == 128
