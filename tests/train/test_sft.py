"""Instruction tuning: which tokens are learned, and a small model that does as it was told."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import mirada
from generate import words
from mirada.cli import main
from mirada.core.linear import Quantized
from mirada.errors import MiradaError
from mirada.text import Tokenizer
from mirada.train import config, order
from mirada.train.language import IGNORED
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from mirada.train.sft import Answers, Mixture, answered
from mirada.weights.gguf import GGUF

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."},
        {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you."}]


def tiny(**changes):
    model = mirada.build("gpt2:tiny", seed=1, vocab=261, context=64, **changes)
    model.tokenizer = words.tokenizer()
    return model


def learned(tokenizer, ids, labels):
    """The stretches that are learned, as text."""
    found, run = [], []
    for i, label in zip([*ids, None], [*labels, IGNORED], strict=True):
        if label == IGNORED:
            found, run = found + ([tokenizer.decode(run, skip_special=False)] if run else []), []
        else:
            assert label == i
            run.append(i)
    return found


@pytest.mark.scope("1.13.7")
def test_only_the_answers_are_learned_each_to_its_end():
    tokenizer = words.tokenizer()
    ids, labels = answered(tokenizer, TALK, 100)
    assert ids == tokenizer.chat(TALK, add_generation_prompt=False)
    assert learned(tokenizer, ids, labels) == ["Hello there.<end>", "See you.<end>"]
    ids, labels = answered(tokenizer, TALK, 10)
    assert len(ids) == 10 and learned(tokenizer, ids, labels) == ["Hello"]


@pytest.mark.scope("1.13.7")
def test_the_mask_of_a_real_template(real):
    """SmolLM2's writes a line break behind the end token, and a system message of its own."""
    with GGUF(real("smollm2")) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    ids, labels = answered(tokenizer, TALK, 1000)
    assert learned(tokenizer, ids, labels) == ["Hello there.<|im_end|>", "See you.<|im_end|>"]
    read = tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label == IGNORED],
                            skip_special=False)
    assert read.startswith("<|im_start|>system\nYou are") and "user\nHi<|im_end|>" in read
    system = [{"role": "system", "content": "Be kind."}, *TALK]
    told, _ = answered(tokenizer, system, 1000)
    assert "Be kind." in tokenizer.decode(told) and "You are" not in tokenizer.decode(told)


@pytest.mark.scope("1.13.7")
def test_the_loss_is_of_the_answer_alone():
    model, short = tiny(), TALK[:2]
    data = Answers.of(model, [TALK, short], 60)
    batch = data.batch([data.sample(n, None) for n in (0, 1)])
    assert data.weight(batch) == len("Hello there.") * 2 + len("See you.") + 3
    loss, _ = data.loss(model, batch)
    alone = 0.0
    for messages in (TALK, short):
        ids = model.tokenizer.chat(messages, add_generation_prompt=False)
        logits = model(torch.tensor([ids])).logits[0]
        for n, message in enumerate(messages):
            if message["role"] == "assistant":
                start = len(model.tokenizer.chat(messages[:n]))
                stop = start + len(message["content"]) + 1
                alone += F.cross_entropy(logits[start - 1 : stop - 1],
                                         torch.tensor(ids[start:stop]), reduction="sum")
    torch.testing.assert_close(loss, alone)


def conversation(system, question, answer):
    return [{"role": "system", "content": system}, {"role": "user", "content": question},
            {"role": "assistant", "content": answer}]


@pytest.mark.scope("1.13.7")
def test_a_tuned_model_answers_as_its_system_message_says():
    letters = "abcd"
    talks = [conversation("U" if up else "L", c, c.upper() if up else c)
             for c in letters for up in (True, False)]
    model = tiny()
    result = fit(model, Answers.of(model, talks, 40), Plan(steps=150, batch=8, dtype="float32"),
                 Recipe(rate=5e-3, warmup=10))
    assert result.history[0]["loss"] > 2 and result.loss < 0.1
    for system, question, answer in (m for m in ([x["content"] for x in t] for t in talks)):
        prompt = model.tokenizer.chat([{"role": "system", "content": system},
                                       {"role": "user", "content": question}])
        out = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False)
        assert out[0, len(prompt) :].tolist() == [ord(answer), 259]  # and it ends


def test_conversations_get_the_system_message_they_lack():
    model = tiny()
    data = Answers.of(model, [TALK, conversation("own", "a", "b")], 60, system="given")
    first, second = (model.tokenizer.decode(ids) for ids, _ in data.rows)
    assert first.startswith("given") and second.startswith("own")


def test_a_mixture_draws_by_shares_and_the_same_each_time():
    sets = [Answers([([n, at], [IGNORED, at]) for at in range(size)])
            for n, size in enumerate((10, 1000))]
    for mixture, share in [(Mixture(sets, (1, 3)), 0.25), (Mixture(sets), 10 / 1010),
                           (Mixture(sets, most=30), 0.25)]:
        drawn = [mixture.sample(n, order.draw(0, 0, n)) for n in range(4000)]
        assert drawn[:50] == [mixture.sample(n, order.draw(0, 0, n)) for n in range(50)]
        assert abs(sum(ids[0] == 0 for ids, _ in drawn) / 4000 - share) < 0.02
        assert len({ids[1] for ids, _ in drawn if ids[0] == 1}) > 900
    with pytest.raises(MiradaError, match="2 sets need as many shares"):
        Mixture(sets, (1,))


def test_what_cannot_be_learned():
    model = tiny()
    with pytest.raises(MiradaError, match="no conversation has an answer within 5 tokens"):
        Answers.of(model, [TALK], 5)
    with pytest.raises(MiradaError, match="no conversation has an answer"):
        Answers.of(model, [TALK[:1]], 50)
    model.tokenizer.templates["default"] = (  # earlier answers are left out of what follows
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}<{{ m.role }}>"
        "{{ m.content }}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}")
    assert Answers.of(model, [TALK[:2]], 50).count == 1
    with pytest.raises(MiradaError, match="writes a turn otherwise once another follows"):
        Answers.of(model, [TALK], 50)


def test_a_run_by_its_name(tmp_path):
    """mirada train with objective "answers" or "preferences", from files of records."""
    mirada.save(tiny(), tmp_path / "model")
    files = {"answers": '{"prompt": "Hi", "answer": "Yes"}\n',
             "preferences": '{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}\n'}
    for name, text in files.items():
        (tmp_path / f"{name}.jsonl").write_text(text * 3)
        asked = config.Run(str(tmp_path / "model"), (str(tmp_path / f"{name}.jsonl"),), name, 40,
                           options={"system": "Be kind"}, plan={"steps": 3, "batch": 2})
        config.create(asked, tmp_path / name)
        run, model, objective = config.open_run(tmp_path / name)
        assert objective.count == 3
        result = fit(model, objective, run.whole_plan(), Recipe(rate=1e-2))
        assert result.loss < result.history[0]["loss"]
    row = objective.rows[0]
    assert model.tokenizer.decode(row[0]) == "Be kindHi"
    wrong = config.Run(asked.model, asked.data, "answers", 40)
    config.create(wrong, tmp_path / "wrong")
    with pytest.raises(MiradaError, match="needs the columns prompt and answer"):
        config.open_run(tmp_path / "wrong")


@pytest.mark.parametrize("name", ["answers", "preferences"])
def test_an_adapter_from_a_file(name, tmp_path):
    """QLoRA by mirada train: stopped, begun again, and the adapter that it leaves."""
    mirada.save(tiny(), tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "Hi", "answer": "Yes", "chosen": "Yes", "rejected": "No"}\n' * 4)
    (tmp_path / "run.toml").write_text(
        f'model = "model"\ndata = "rows.jsonl"\nobjective = "{name}"\nlength = 40\n'
        '[adapter]\nrank = 2\nalpha = 4\ntargets = ["q", "v"]\nquantize = "nf4d"\n'
        '[plan]\nsteps = 4\nbatch = 2\nsave = 1\n[recipe]\nrate = 0.01\n')
    words = ["train", str(tmp_path / "run.toml"), "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    run = config.read(tmp_path / "run.toml", {})
    config.create(run, tmp_path / "parts")
    _, model, objective = config.open_run(tmp_path / "parts")
    assert [m.type for m in model.modules() if isinstance(m, Quantized)] == ["NF4D"] * 12
    fit(model, objective, run.whole_plan(), run.whole_recipe(), out=str(tmp_path / "parts"),
        watch=lambda line: line["step"] == 2)
    assert main(["train", "--resume", str(tmp_path / "parts")]) == 0
    one, two = (load_file(tmp_path / out / "adapter/adapter_model.safetensors")
                for out in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    assert any(t.any() for n, t in one.items() if "lora_B" in n)
    assert not (tmp_path / "whole/model").exists()
    with pytest.raises(MiradaError, match="an adapter is tuned on a model that was trained"):
        config.Run("gpt2:tiny", ("x.txt",), adapter={"rank": 2})
    with pytest.raises(MiradaError, match="argument 'rnk'; mirada.edit.lora says"):
        config._adapted(config.Run("x", ("x.txt",), adapter={"rnk": 2}), tiny())
