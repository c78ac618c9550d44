"""Conversations: turns, what is forgotten, and the cache between turns."""

import json

import pytest
import torch

import mirada
from generate.words import saying, speaker
from mirada import cli
from mirada.commands import chat as chat_command
from mirada.edit import lower
from mirada.errors import MiradaError, UntrustedInputError
from mirada.generate import run
from mirada.generate.chat import Conversation
from mirada.generate.loop import single
from mirada.generate.text import text_stream
from mirada.kernels import native


def said(conversation: Conversation, message: str, **options) -> str:
    return "".join(conversation.send(message, **options))


def test_turns():
    talk = Conversation(saying("Hello.", "Fine."), system="Be kind.")
    assert said(talk, "Hi") == "Hello." and said(talk, "How?") == "Fine."
    assert talk.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "How?"}, {"role": "assistant", "content": "Fine."}]
    prompt = talk.model.tokenizer.chat(talk.messages, add_generation_prompt=False)
    assert talk.used == len(prompt) and talk.budget == 256


def reading(model: mirada.Model) -> list[int]:
    """Grows by how many tokens each pass reads."""
    lengths: list[int] = []
    model.body.embed.register_forward_pre_hook(
        lambda m, args: lengths.append(args[0].input_ids.shape[1]))
    return lengths


@pytest.mark.parametrize("words", [(), ("one", "two", "three")])
def test_what_was_read_is_not_read_again(words):
    """With the cache kept between turns the answers are those of reading everything anew."""
    model = saying(*words) if words else speaker(context=600).double()
    talk, lengths, asked = Conversation(model, "Sys"), reading(model), []
    for turn, message in enumerate(("First", "And second?", "Third!")):
        del lengths[:]
        reply = talk.send(message, max_new_tokens=9)
        list(reply)
        asked.append((reply.run.feed.prompt[0].tolist(), reply.ids))
        assert lengths[0] == reply.prompt_tokens - talk.reused
        assert talk.reused > 0 if turn else talk.reused == 0
    if not words:
        for ids, answer in asked:
            fresh = text_stream(model, ids, max_new_tokens=9)
            list(fresh)
            assert fresh.ids == answer


@pytest.mark.parametrize("way", ["torch", "native"])
def test_other_weights_read_everything_again(way):
    """Between two turns the weights change: the answer is that of a conversation loaded anew."""
    model = speaker(context=600)
    if way == "native":
        if native.missing():
            pytest.skip(native.missing())
        lower.attach(model)
    talk = Conversation(model)
    said(talk, "First", max_new_tokens=9)
    with torch.no_grad():
        model.get_submodule("body.blocks.0.mlp.f.up").weight.mul_(-1)
    reply = talk.send("And second?", max_new_tokens=9)
    list(reply)
    fresh = text_stream(model, reply.run.feed.prompt[0].tolist(), max_new_tokens=9)
    list(fresh)
    assert talk.reused == 0 and reply.ids == fresh.ids
    held = reply.run.feed.cache  # given by hand, the native one is seen through too
    with torch.no_grad():
        model.get_submodule("body.blocks.0.mlp.f.up").weight.mul_(-1)
    again = single(model, [*reply.run.ids[0].tolist(), 5], None, {"cache": held})
    assert (again.feed.cache is held) == (way == "torch")


def test_the_newest_turns_are_read_alone():
    """A reply that is written back as it was leaves only the end token and the message."""
    talk = Conversation(saying("one", "two"))
    said(talk, "First")
    held = talk.used - 1  # the end token was chosen and never read
    said(talk, "Second")
    assert talk.reused == held


def test_a_rewritten_past_is_read_anew():
    model = speaker().double()
    talk = Conversation(model, "Sys")
    said(talk, "First", max_new_tokens=9)
    before = talk.used
    talk.messages[0] = {"role": "system", "content": "Sxs"}
    reply = talk.send("Second", max_new_tokens=9)
    list(reply)
    assert talk.reused == 2 < before  # <system> and S
    fresh = text_stream(model, reply.run.feed.prompt[0].tolist(), max_new_tokens=9)
    list(fresh)
    assert fresh.ids == reply.ids


@pytest.mark.scope("1.15.4")
def test_the_oldest_turns_are_forgotten_and_named():
    model = saying("a" * 10, "b" * 10, "c" * 10, "d")
    talk = Conversation(model, "Sys", context=64)
    said(talk, "1" * 8)  # a turn of 8 and 10 with its four markers is 22 tokens; system 5
    said(talk, "2" * 8)
    reply = talk.send("3" * 8, max_new_tokens=16)
    assert reply.dropped == [{"role": "user", "content": "1" * 8},
                             {"role": "assistant", "content": "a" * 10}]
    assert "".join(reply) == "c" * 10
    assert [m["content"] for m in talk.messages] == [
        "Sys", "2" * 8, "b" * 10, "3" * 8, "c" * 10]
    assert talk.used <= talk.budget == 64
    last = talk.send("4" * 20, max_new_tokens=30)
    assert len(last.dropped) == 4 and "".join(last) == "d"
    assert talk.messages[0]["content"] == "Sys"


@pytest.mark.parametrize("context, dropped", [(40, 0), (39, 2)])
def test_nothing_is_forgotten_that_fits(context, dropped):
    talk = Conversation(saying("one", "two"), context=context)
    said(talk, "First")
    reply = talk.send("Next", max_new_tokens=21)
    assert len(reply.dropped) == dropped and reply.prompt_tokens == (7 if dropped else 19)


def test_equal_messages_are_told_apart():
    talk = Conversation(saying("x" * 10, "x" * 10, "x"), context=50)
    said(talk, "same")
    said(talk, "same")
    reply = talk.send("same", max_new_tokens=16)
    assert len(reply.dropped) == 2 and len(reply.messages) == 3


def test_a_message_that_can_not_fit():
    talk = Conversation(saying("short", "ok"), "Sys", context=40)
    said(talk, "Hi")
    before = list(talk.messages)
    with pytest.raises(mirada.MiradaError, match=r"a prompt of 68 tokens, and the context is 40"):
        talk.send("x" * 60)
    assert talk.messages == before and said(talk, "Hi") == "ok"


def test_a_reply_that_the_context_cuts_says_so():
    talk = Conversation(saying("x" * 90), context=40)
    reply = talk.send("Hello", max_new_tokens=39)
    assert "".join(reply) == "x" * (40 - reply.prompt_tokens)
    assert reply.finish_reason == "context" and talk.used == 40


def test_a_reply_that_is_left_stays_as_far_as_it_came():
    model = speaker().double()
    talk = Conversation(model, "Sys")
    reply = talk.send("Go", max_new_tokens=30, eos_token_id=())
    shown = "".join(piece for piece, _ in zip(reply, range(5), strict=False))
    after = talk.send("On", max_new_tokens=9)  # closes the reply
    assert talk.messages[-1] == {"role": "assistant", "content": reply.text}
    assert reply.text.startswith(shown) and reply.finish_reason is None
    list(after)
    fresh = text_stream(model, after.run.feed.prompt[0].tolist(), max_new_tokens=9)
    list(fresh)
    assert fresh.ids == after.ids


def test_an_interrupt_within_a_pass_leaves_a_true_cache():
    """Some layers have taken the token in and some have not: the next turn must not notice."""
    model = speaker().double()
    talk, calls = Conversation(model, "Sys"), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    hook = model.body.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        said(talk, "Go", eos_token_id=())
    hook.remove()
    reply = talk.send("On", max_new_tokens=9)
    list(reply)
    assert talk.reused > 0
    fresh = text_stream(model, reply.run.feed.prompt[0].tolist(), max_new_tokens=9)
    list(fresh)
    assert fresh.ids == reply.ids


def test_a_failed_reply_changes_nothing():
    model = speaker()
    talk = Conversation(model)
    with pytest.raises(mirada.MiradaError, match="top_p"):
        talk.send("Hi", top_p=2)
    weight = model.body.norm.weight.data.clone()
    model.body.norm.weight.data.fill_(torch.nan)
    with pytest.raises(mirada.WorkFailed, match="not finite"):
        said(talk, "Hi")
    model.body.norm.weight.data.copy_(weight)
    assert talk.messages == []
    said(talk, "Hi", max_new_tokens=3)
    assert len(talk.messages) == 2


def test_conversations_that_can_not_begin():
    with pytest.raises(mirada.MiradaError, match="has no tokenizer"):
        Conversation(mirada.build("gpt2", size="tiny"))
    with pytest.raises(mirada.MiradaError, match="at most the model's 256"):
        Conversation(speaker(), context=300)
    model = speaker()
    model.tokenizer.templates.clear()
    with pytest.raises(mirada.MiradaError, match="no chat template"):
        Conversation(model).send("Hi")


# Taking back, trying again, keeping


def contents(talk: Conversation) -> list[str]:
    return [m["content"] for m in talk.messages]


@pytest.mark.scope("1.14.9")
def test_a_turn_is_taken_back():
    talk = Conversation(saying("one", "two", "three"), "Sys")
    assert talk.undo() is None
    said(talk, "First")
    before, used = list(talk.messages), talk.used
    said(talk, "Second")
    assert talk.undo() == "Second" and talk.messages == before and talk.used == used
    assert talk.left == talk.budget - used
    said(talk, "Third")
    assert talk.reused == used + 1  # and the mark of a new message
    assert contents(talk)[-2:] == ["Third", "three"]


@pytest.mark.scope("1.14.9")
def test_another_answer_to_the_same_message():
    talk = Conversation(saying("one", "two", "three", "four"), "Sys")
    with pytest.raises(MiradaError, match="no message yet"):
        talk.retry()
    said(talk, "First")
    said(talk, "Second")
    assert "".join(talk.retry()) == "three"
    assert contents(talk) == ["Sys", "First", "one", "Second", "three"]
    with pytest.raises(MiradaError, match="top_p"):
        talk.retry(top_p=2)
    assert contents(talk)[-1] == "three"
    reply = talk.send("Third")
    reply.close()  # before a token was written
    assert "".join(talk.retry()) == "four" and contents(talk)[-2:] == ["Third", "four"]


def test_another_system_message():
    talk = Conversation(saying("one", "two", "three"))
    said(talk, "First")
    talk.system = "Be kind."
    assert talk.system == "Be kind." and contents(talk) == ["Be kind.", "First", "one"]
    said(talk, "Second")
    talk.system = None
    assert talk.system is None and len(talk.messages) == 4
    talk.system = "Sys"
    talk.reset()
    assert contents(talk) == ["Sys"] and talk.used == 0
    assert said(talk, "Anew") == "three" and talk.system == "Sys"


@pytest.mark.scope("1.14.9")
def test_a_conversation_is_saved_and_gone_on_with(tmp_path):
    model, file = saying("uno", "dos"), tmp_path / "talk.json"
    talk = Conversation(model, "Sys")
    said(talk, "¿Qué?")
    talk.save(file)
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]
    assert json.loads(file.read_text())["messages"] == talk.messages
    other = Conversation(model)
    other.load(file)
    assert other.messages == talk.messages and other.used == talk.used
    assert said(other, "And?") == "dos" and len(talk.messages) == 3
    with pytest.raises(mirada.WorkFailed, match="nowhere/x.json cannot be written"):
        talk.save(tmp_path / "nowhere" / "x.json")


def test_a_torn_write_leaves_the_older_file(tmp_path, monkeypatch):
    from mirada.weights import jsonfile
    talk, file = Conversation(saying("one", "two")), tmp_path / "talk.json"
    said(talk, "First")
    talk.save(file)
    before = file.read_bytes()

    def torn(path, value):
        path.write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jsonfile, "write", torn)
    said(talk, "Second")
    with pytest.raises(mirada.WorkFailed, match="No space"):
        talk.save(file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text, field", [
    ("[1]", "messages"), ('{"messages": {}}', "messages"), ("{", "talk.json"),
    ('{"messages": ["a"]}', r"messages\[0\]"),
    ('{"messages": [{"role": "user", "content": 1}]}', r"messages\[0\]"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "turns"),
    ('{"messages": [{"role": "tool", "content": "a"}, {"role": "user", "content": "a"}]}',
     "turns")])
def test_a_file_that_is_no_conversation(tmp_path, text, field):
    (tmp_path / "talk.json").write_text(text)
    talk = Conversation(saying("one", "two"))
    said(talk, "First")
    with pytest.raises(UntrustedInputError, match=field):
        talk.load(tmp_path / "talk.json")
    assert len(talk.messages) == 2 and said(talk, "Second") == "two"


# In the terminal


def typed(monkeypatch, capsys, model, *lines, **options):
    """What `mirada chat` shows when these lines are typed: (out, err)."""
    lines = iter(lines)

    def asked(prompt):
        print(prompt, end="")
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", asked)
    run.talk(model, **options)
    return capsys.readouterr()


@pytest.mark.scope("1.6.5", "1.14.9")
def test_what_can_be_typed(monkeypatch, capsys, tmp_path):
    file = str(tmp_path / "talk.json")
    shown = typed(
        monkeypatch, capsys, saying("one", "two", "three", "four"), "/undo", "/system Be kind.",
        "First", "/retry", f"/save {file}", "/undo", "Second", "/reset", f"/load {file}", "Third",
        "/sing", "/load nowhere.json", "/save", "", "/exit", "never read")
    told = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["content"] for m in told] == ["Be kind.", "First", "two"]
    for words in ("nothing to take back", "system message is set", "3 messages saved",
                  "taken back: First", "3 messages loaded", "/sing is no command",
                  "nowhere.json: file: there is no such file", "/save is no command"):
        assert words in shown.err, words
    assert shown.err.count("tokens/s") == 4 and "three" in shown.out and "four" in shown.out


@pytest.mark.scope("1.6.5", "1.14.9")
def test_the_budget_is_shown_and_what_is_forgotten_said(monkeypatch, capsys):
    shown = typed(monkeypatch, capsys, saying("a" * 10, "b" * 10, "c" * 10), "1" * 8, "2" * 8,
                  "3" * 8, system="Sys", context=64, max_new_tokens=16)
    assert [f"[{n}/64 tokens] >" in shown.out for n in (0, 27, 49)] == [True] * 3
    for left in (37, 15):
        assert f"; {left} tokens of the context are left]" in shown.err
    assert 'forgets the oldest 1 turn, from "11111111" on' in shown.err


@pytest.mark.scope("1.14.9")
def test_an_interrupt_stops_the_answer_and_keeps_the_chat(monkeypatch, capsys):
    model, passes = saying("a long answer"), []

    def interrupt(*_):
        passes.append(1)
        if len(passes) == 5:
            raise KeyboardInterrupt

    model.body.blocks[0].register_forward_pre_hook(interrupt)
    shown = typed(monkeypatch, capsys, model, "First", "Second", "/exit")
    assert "> a lo\n" in shown.out and "> ng answer\n" in shown.out  # the model's script goes on


def test_the_command_goes_on_with_a_file(monkeypatch, capsys, tmp_path):
    model = saying("one", "two")
    talk = Conversation(model)
    said(talk, "First")
    talk.save(tmp_path / "talk.json")
    monkeypatch.setattr(chat_command, "load", lambda args: model)
    lines = iter(["/undo", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: (print(prompt), next(lines))[1])
    assert cli.main(["chat", "any", "--resume", str(tmp_path / "talk.json"),
                     "--context", "99"]) == 0
    shown = capsys.readouterr()
    assert f"[{talk.used}/99 tokens]" in shown.out and "taken back: First" in shown.err
