"""Text: characters and stop strings are never shown in part; the context as a window."""

import json

import pytest
import tokenizers
import torch
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import decoders

import mirada
from generate.words import saying, speaker
from mirada.generate import run, stop
from mirada.generate.chat import Conversation
from mirada.generate.text import behind, prompt_ids, text, text_stream
from mirada.generate.window import count, fit
from mirada.text import readers
from mirada.text.tokenizer import Tokenizer
from tasks import tiny

SAID = "Olé, señor 😀! The end.\n\nUser: more"


@pytest.mark.scope("1.14.5")
def test_the_pieces_are_the_text():
    model = saying(SAID)
    answer = text_stream(model, [65, 66, 67])
    pieces = list(answer)
    assert "".join(pieces) == answer.text == SAID
    assert "é" in pieces and "😀" in pieces and not any("\ufffd" in p for p in pieces)
    assert answer.finish_reason == "eos" and answer.prompt_tokens == 3
    assert answer.ids == [*model.tokenizer.encode(SAID).ids, 259]
    assert answer.new_tokens == len(answer.ids) == len(SAID.encode()) + 1
    assert answer.seconds > 0


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """The reference, its tokenizer, and ours, from one folder."""
    folder = tiny.gpt2(tmp_path_factory.mktemp("text") / "gpt2")
    return (transformers.GPT2LMHeadModel.from_pretrained(folder).eval(),
            transformers.AutoTokenizer.from_pretrained(folder), mirada.load(folder))


@pytest.mark.scope("1.14.5")
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}], ids=str)
def test_what_is_streamed_is_what_the_reference_writes(letters, options):
    """Each piece comes while later ones are not yet written."""
    theirs, tokenizer, ours = letters
    prompt = "the cat sat on"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = theirs.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0,
                                 **options)[0, ids.shape[1] :]
    answer, written = text_stream(ours, ids[0].tolist(), max_new_tokens=20, **options), []
    pieces = [(piece, written.append(len(answer.ids)))[0] for piece in answer]
    assert answer.ids == wanted.tolist()
    assert "".join(pieces) == tokenizer.decode(wanted, skip_special_tokens=True)
    assert written == sorted(written) and written[0] < 3 and len(set(written)) > 10
    assert text(ours, prompt, max_new_tokens=20, **options) == "".join(pieces)


@pytest.mark.scope("1.14.5")
def test_the_command_streams(letters, monkeypatch, capsys):
    """What stands on the screen when a token is written is all that was written before it."""
    shown = []
    hook = letters[2].head.register_forward_hook(
        lambda *_: shown.append(capsys.readouterr().out))
    run.run(letters[2], "the cat", raw=True, max_new_tokens=12)
    hook.remove()
    whole = "".join(shown) + capsys.readouterr().out
    assert whole == text(letters[2], "the cat", max_new_tokens=12) + "\n"
    assert shown[0] == "" and sum(map(bool, shown)) > 5


@pytest.fixture(scope="module")
def pieces_tokenizer():
    """Of words that carry the space before them, as sentencepiece's, with a decoder that drops the
    first."""
    words = ["<s>", "▁the", "▁cat", "s", "▁sat", "▁"]
    library = tokenizers.Tokenizer(tokenizers.models.BPE(
        {word: i for i, word in enumerate(words)}, []))
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(),
                                         decoders.Strip(" ", 1)])
    library.add_special_tokens(["<s>"])
    return Tokenizer(json.loads(library.to_str()), readers.Settings("pieces"))


@pytest.mark.parametrize("prompt, said, goes_on, answer", [
    ([1, 2], [4, 1], True, " sat the"), ([1, 2], [3, 4], True, "s sat"),
    ([1, 2], [4, 1], False, "sat the"), ([0], [4, 1], True, "sat the"),
    ([1, 0], [4], True, " sat"), ([1], [5, 3], True, " s")])
def test_a_space_that_goes_on_is_kept(pieces_tokenizer, prompt, said, goes_on, answer):
    model, script = mirada.build("gpt2", size="tiny", vocab=6), list(said)
    model.tokenizer = pieces_tokenizer

    def say(module, given, out):
        logits = torch.full_like(out["logits"], -9.0)
        logits[:, -1, script.pop(0)] = 9.0
        return {"logits": logits}

    model.head.register_forward_hook(say)
    found = text_stream(model, prompt, goes_on=goes_on, max_new_tokens=len(said), eos_token_id=())
    assert "".join(found) == found.text == answer
    assert behind(pieces_tokenizer, prompt if goes_on else [], said) == answer


@pytest.mark.parametrize("stops, before", [
    ("\n\nUser:", "Olé, señor 😀! The end."),
    (["xyz", "ñ"], "Olé, se"),
    ([" 😀!", "senor"], "Olé, señor"),
    (["or", "r 😀"], "Olé, señ"),
    ("O", ""),
    (["d.", "end."], "Olé, señor 😀! The "),
    (["The e", "he end."], "Olé, señor 😀! "),
    ("absent", SAID),
])
def test_stop_strings_end_the_text_and_are_never_shown(stops, before):
    pieces = []
    shown = text(saying(SAID), "ABC", stop=stops, on_text=pieces.append)
    assert shown == before == "".join(pieces)
    so_far = ""
    for piece in pieces:  # nothing was shown that had to be taken back
        so_far += piece
        assert before.startswith(so_far)
    answer = text_stream(saying(SAID), [65, 66], stop=stops)
    assert "".join(answer) == before
    assert answer.finish_reason == ("eos" if before == SAID else "stop")


def test_an_end_token_is_not_text():
    answer = text_stream(saying(SAID), [65, 66], eos_token_id=ord("!"))
    assert "".join(answer) == "Olé, señor 😀" and answer.finish_reason == "eos"


def test_a_stop_string_around_a_token_that_is_not_shown():
    answer = text_stream(saying("ax<user>yz"), [65, 66], stop="xy")
    assert "".join(answer) == "a" and answer.finish_reason == "stop"
    assert answer.ids == [ord("a"), ord("x"), 257, ord("y")]


def test_ids_end_with_the_token_that_completes_a_stop_string():
    ids = saying(SAID).generate([65, 66], stop=["señor"], max_new_tokens=99)[0, 2:].tolist()
    assert bytes(ids).decode() == "Olé, señor"
    assert list(saying(SAID).stream([65, 66], stop=["señor"], max_new_tokens=99)) == ids
    whole = saying(SAID).generate([65, 66], stop="<end>", eos_token_id=(), max_new_tokens=99)
    assert whole[0, -1] == 259, "a control token is a stop string too"


def test_a_stop_string_is_looked_for_in_the_answer_alone():
    model = saying("cab, cab")
    ids = model.generate(model.tokenizer.encode("ab").ids, stop=["bc", "abc"], max_new_tokens=99)
    assert bytes(ids[0, :-1].tolist()).decode() == "abcab, cab"


def test_each_row_of_a_batch_stops_by_itself():
    model = speaker()
    prompts = [[65, 66], [67, 68], [69, 70]]
    plain = model.generate(prompts, max_new_tokens=30, eos_token_id=())
    letters = [model.tokenizer.decode(row[2:], skip_special=False) for row in plain.tolist()]
    stops = letters[0][4], letters[1][9]
    got = model.generate(prompts, max_new_tokens=30, eos_token_id=(), stop=stops)
    for row, alone in zip(got.tolist(), prompts, strict=True):
        single = model.generate(alone, max_new_tokens=30, eos_token_id=(), stop=stops)[0].tolist()
        assert row == single + [260] * (len(row) - len(single))
    assert (got[:, -1] == 260).any(), "no row stopped before another"


def test_why_it_ended_and_how_long_it_may_be():
    cut = text_stream(saying(SAID), [65, 66], max_new_tokens=4)
    assert "".join(cut) == "Olé" and cut.finish_reason == "length"
    full = text_stream(saying("x" * 300), [65] * 250)
    assert "".join(full) == "x" * 6 and full.finish_reason == "context"
    broken = text_stream(saying(SAID), [65, 66], max_new_tokens=3)
    assert "".join(broken) == "Ol\ufffd", "half a character at the end is said to be one"
    left = text_stream(saying(SAID), [65, 66])
    assert next(iter(left)) == "O"
    left.close()
    assert left.finish_reason is None and left.text == "O"
    assert len(text_stream(speaker(context=999), [65, 66], eos_token_id=()).run.ids[0]) == 2


def test_pad_ids_in_a_text_are_read():
    """A chat's markers may be the pad id: they are no padding."""
    model = speaker()
    one, other = (text_stream(model, [65, pad, 66], max_new_tokens=8, eos_token_id=(),
                              pad_token_id=260) for pad in (260, 67))
    list(one), list(other)
    padded = model.generate([65, 260, 66], [[1, 0, 1]], max_new_tokens=8, eos_token_id=())
    assert one.ids != padded[0, 3:].tolist()


def test_prompts():
    model = speaker()
    assert prompt_ids(model, "Aé") == [65, 0xC3, 0xA9]
    messages = [{"role": "user", "content": "A"}]
    assert prompt_ids(model, messages) == [257, 65, 259, 258]
    with pytest.raises(mirada.MiradaError, match="the prompt is empty"):
        text(model, "")
    with pytest.raises(mirada.MiradaError, match="has no tokenizer"):
        text(mirada.build("gpt2", size="tiny"), "A")
    with pytest.raises(mirada.MiradaError, match="num_beams"):
        text(model, "A", num_beams=2)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_is_held_back_is_what_may_become_a_stop(said, stops):
    assume(stop.cut(said, tuple(stops)) is None)
    n = stop.held(said, tuple(stops))
    proper = [said[i:] for i in range(len(said)) if any(
        s.startswith(said[i:]) and s != said[i:] for s in stops)]
    assert n == max(map(len, proper), default=0)


@pytest.mark.scope("1.15.4")
def test_fit():
    ids = list(range(10))
    assert fit(ids, 12, 2) == (ids, [], 0)
    assert fit(ids, None, 99) == (ids, [], 0)
    assert fit(ids, 8, 2, "left") == ([4, 5, 6, 7, 8, 9], [0, 1, 2, 3], 0)
    assert fit(ids, 7, 2, "middle") == ([0, 1, 7, 8, 9], [2, 3, 4, 5, 6], 2)
    with pytest.raises(mirada.MiradaError, match="10 tokens; with 2 for the answer, the context "
                                                 "of 8 takes 6"):
        fit(ids, 8, 2)
    with pytest.raises(mirada.MiradaError, match="no place for a prompt"):
        fit(ids, 8, 8, "left")
    with pytest.raises(mirada.MiradaError, match="no policy is called 'right'"):
        fit(ids, 8, 2, "right")


@given(st.integers(1, 60), st.integers(2, 40), st.integers(1, 10),
       st.sampled_from(["left", "middle"]))
def test_fit_loses_nothing_unsaid(length, context, room, policy):
    ids = list(range(length))
    if room >= context:
        return
    kept, dropped, start = fit(ids, context, room, policy)
    assert kept[:start] + dropped + kept[start:] == ids
    assert len(kept) == min(length, context - room)
    assert kept[-1] == ids[-1]


@pytest.mark.scope("1.15.4")
def test_count():
    words = "I love pizza"
    assert count(speaker().tokenizer, words) == (3, 12)


def test_a_real_model_answers(real):
    model = mirada.load(real("smollm2"))
    asked = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    answer = text_stream(model, prompt_ids(model, asked))
    assert "".join(answer) == "The capital of France is Paris."
    assert answer.finish_reason == "eos" and answer.prompt_tokens == 16
    talk = Conversation(model)
    assert "".join(talk.send("What is the capital of France?")) == "The capital of France is Paris."
    assert "Madrid" in "".join(talk.send("And of Spain?"))
    assert talk.reused > 40
