"""The attention that goes with an answer, against the reference's own maps."""

from contextlib import nullcontext

import pytest
import torch
import transformers

import mirada
from mirada.tasks import evidence
from parity.harness import Float64
from tasks import tiny

TEXT = "the cat sat on a mat and language was there"
LABELS = {"id2label": {0: "NEG", 1: "POS"}, "label2id": {"NEG": 0, "POS": 1}}


def maps(folder: str, kind: str, *texts: str, **more):
    """The last layer's attention (H, T, S) of the reference, and its tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, kind).from_pretrained(
        folder, attn_implementation="eager", dtype=more.pop("dtype", None)).eval()
    batch = tokenizer(*texts, return_tensors="pt")
    with torch.no_grad(), Float64() if model.dtype == torch.float64 else nullcontext():
        out = model(**batch, output_attentions=True, **more)
    return out, tokenizer.convert_ids_to_tokens(batch["input_ids"][0])


def same(found: dict, wanted: torch.Tensor, tokens: list[str]) -> None:
    assert found["note"] == evidence.NOTE and "not an explanation" in found["note"]
    assert [one["token"] for one in found["tokens"]] == tokens
    weights = torch.tensor([one["weight"] for one in found["tokens"]])
    assert torch.allclose(weights, wanted, atol=2e-6) and abs(weights.sum() - 1) < 1e-5


def test_a_classifiers_first_token(tmp_path):
    folder = tiny.bert(tmp_path / "m", "ForSequenceClassification", **LABELS)
    pipe = mirada.pipeline("text-classification", folder)
    (found,), (plain,) = pipe(TEXT, evidence=True), pipe(TEXT)
    out, tokens = maps(folder, "BertForSequenceClassification", TEXT)
    (seen,) = found.pop("evidence")
    same(seen, out.attentions[-1][0, :, 0].mean(0), tokens)
    assert found == plain and "first token" in seen["what"]
    for one in seen["tokens"][1:-1]:
        assert one["text"] == 0 and TEXT[one["start"]:one["end"]] in one["token"]
    assert seen["tokens"][0]["text"] is None and "start" not in seen["tokens"][0]


def test_of_several_labels_and_windows(tmp_path):
    folder = tiny.bert(tmp_path / "m", "ForSequenceClassification", **LABELS)
    pipe = mirada.pipeline("text-classification", folder, long="stride", evidence=True)
    best, other = pipe(f"{TEXT} " * 12, top_k=2)
    assert len(best["evidence"]) > 1 and "evidence" not in other
    ends = [max(t.get("end", 0) for t in one["tokens"]) for one in best["evidence"]]
    assert ends == sorted(ends) and ends[-1] == len(f"{TEXT} " * 12) - 1


def test_a_decoder_that_classifies_reads_its_last_token(tmp_path):
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2,
                                     n_positions=64, pad_token_id=0, **LABELS)
    folder = tiny.saved(tmp_path / "m", transformers.GPT2ForSequenceClassification(config),
                        tiny.byte_level())
    (found,) = mirada.pipeline("text-classification", folder)(TEXT, evidence=True)
    out, tokens = maps(folder, "GPT2ForSequenceClassification", TEXT)
    same(found["evidence"][0], out.attentions[-1][0, :, -1].mean(0), tokens)


def test_an_answers_tokens(tmp_path):
    folder = tiny.bert(tmp_path / "m", "ForQuestionAnswering")
    pipe = mirada.pipeline("question-answering", folder, align_to_words=False)
    found = pipe(question="what?", context=TEXT, evidence=True)
    seen = found.pop("evidence")
    assert found == pipe(question="what?", context=TEXT)
    out, tokens = maps(folder, "BertForQuestionAnswering", "what?", TEXT)
    rows = [i for i, one in enumerate(seen["tokens"]) if one["text"] == 1
            and found["start"] <= one["start"] and one["end"] <= found["end"]]
    assert TEXT[found["start"]:found["end"]] == found["answer"]
    same(seen, out.attentions[-1][0, :, rows].mean((0, 1)), tokens)


def test_each_name(tmp_path):
    labels = {0: "O", 1: "B-PER", 2: "I-PER"}
    folder = tiny.bert(tmp_path / "m", "ForTokenClassification", id2label=labels,
                       label2id={v: k for k, v in labels.items()})
    pipe = mirada.pipeline("ner", folder, ignore_labels=[])
    out, tokens = maps(folder, "BertForTokenClassification", TEXT)
    for one in pipe(TEXT, evidence=True):
        same(one["evidence"], out.attentions[-1][0, :, one["index"]].mean(0), tokens)
    joined = pipe(TEXT, aggregation_strategy="simple", evidence=True)
    first = joined[0]["evidence"]
    rows = [i for i, t in enumerate(first["tokens"]) if t["text"] == 0
            and t["start"] < joined[0]["end"] and t["end"] > joined[0]["start"]]
    same(first, out.attentions[-1][0, :, rows].mean((0, 1)), tokens)


def test_a_masks_row(tmp_path):
    folder = tiny.bert(tmp_path / "m", "ForMaskedLM")
    pipe = mirada.pipeline("fill-mask", folder)
    text = "the [MASK] sat on a [MASK]"
    found, plain = pipe(text, evidence=True), pipe(text)
    out, tokens = maps(folder, "BertForMaskedLM", text)
    places = [i for i, token in enumerate(tokens) if token == "[MASK]"]
    for place, some in zip(places, found, strict=True):
        same(some[0].pop("evidence"), out.attentions[-1][0, :, place].mean(0), tokens)
    assert found == plain


def written(found: dict, wanted: torch.Tensor, tokens: list[str]) -> None:
    """At most eight tokens, the highest first."""
    weights = [one["weight"] for one in found["tokens"]]
    best = wanted.topk(min(evidence.MOST, len(wanted)))
    assert weights == pytest.approx(best.values.tolist(), abs=2e-6)
    assert all(wanted[one["index"]].item() == pytest.approx(one["weight"], abs=2e-6)
               and tokens[one["index"]] == one["token"] for one in found["tokens"])


def test_each_token_that_a_decoder_writes(tmp_path):
    folder = tiny.gpt2(tmp_path / "m")
    pipe = mirada.pipeline("text-generation", folder, do_sample=False, max_new_tokens=4,
                           return_full_text=False)
    (found,) = pipe(TEXT, evidence=True)
    assert found["generated_text"] == pipe(TEXT)[0]["generated_text"]
    model = pipe.model
    ids = torch.tensor([model.tokenizer.encode(TEXT).ids])
    new = model.generate(ids, do_sample=False, max_new_tokens=4)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder,
                                                          attn_implementation="eager").eval()
    with torch.no_grad():
        attention = theirs(new, output_attentions=True).attentions[-1][0].mean(0)  # (T, T)
    tokens = [model.tokenizer.token(i) for i in new[0].tolist()]
    first = ids.shape[1] - 1
    assert len(found["evidence"]) == new.shape[1] - ids.shape[1]
    for n, one in enumerate(found["evidence"]):
        assert repr(tokens[first + 1 + n]) in one["what"]
        written(one, attention[first + n, : first + n + 1], tokens)


def test_each_token_that_an_encoder_decoder_writes(tmp_path):
    folder = tiny.t5(tmp_path / "m")
    pipe = mirada.pipeline("summarization", folder, num_beams=1, do_sample=False,
                           max_new_tokens=4)
    model = pipe.model.to(torch.float64)  # its weights are loud: float32 rounds in the 5th place
    (found,) = pipe(TEXT, evidence=True)
    source = torch.tensor([model.tokenizer.encode(TEXT).ids])
    new = model.generate(source, num_beams=1, do_sample=False, max_new_tokens=4)
    out, tokens = maps(folder, "T5ForConditionalGeneration", TEXT, decoder_input_ids=new[:, :-1],
                       dtype=torch.float64)
    attention = out.cross_attentions[-1][0].mean(0)
    assert 0 < len(found["evidence"]) <= new.shape[1] - 1
    for n, one in enumerate(found["evidence"]):
        assert repr(model.tokenizer.token(int(new[0, 1 + n]))) in one["what"]
        written(one, attention[n], tokens)


def test_only_one_layers_queries_and_keys_are_kept(tmp_path):
    model = mirada.load(tiny.bert(tmp_path / "m", "ForSequenceClassification", **LABELS))
    from mirada.tasks import inputs
    look = evidence.Look(model, inputs.row(model, TEXT, None, {}))
    ((taken,),), = look.tape.runs.values()
    assert look.tape.layers() == [1] and look.tape.selfcheck < 1e-5
    assert taken.q.numel() + taken.k.numel() == 2 * len(look.row) * model.config.d


def test_longformers_first_token_looks_through_its_own_projections(tmp_path):
    """It sees everything; the map of the windows would be another one."""
    folder = tiny.longformer(tmp_path / "m", **LABELS)
    (found,) = mirada.pipeline("text-classification", folder)(TEXT, evidence=True)
    out, tokens = maps(folder, "LongformerForSequenceClassification", TEXT)
    same(found["evidence"][0], out.global_attentions[-1][0, :, : len(tokens), 0].mean(0), tokens)
