"""Every call of explorer/1: its JSON fulfils the schema, its numbers are the model's own."""

import json

import jsonschema
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mirada
from mirada.serve import schema
from mirada.serve.errors import Refused
from mirada.serve.explorer import ROUTES
from serve.caller import HOSTILE, TEXT, fulfils


def weights(x: numpy.ndarray) -> numpy.ndarray:
    return (x / 255.0) ** 2


def test_models_and_a_run(caller, run):
    told = caller.get("models")
    assert [m["name"] for m in told["models"]] == ["gpt", "bert", "t5", "judge"]
    assert [m["output"] for m in told["models"]] == ["next", "mask", "next", "labels"]
    card = caller.get("models/m0")
    assert card["parameters"] == sum(p.numel() for p in set(
        caller.explorer.models["m0"].model.parameters()))
    tokens = run["tokens"]["decoder"]
    own = caller.explorer.models["m0"].model.tokenizer
    assert [t["id"] for t in tokens] == own.encode(TEXT).ids
    assert "".join(t["s"] for t in tokens).replace("·", " ") == TEXT
    assert [TEXT[a:b] for a, b in (t["b"] for t in tokens)] == [
        t["s"].replace("·", " ") for t in tokens]
    assert tokens[-1]["w"] == 7, "eight words"
    assert run["numerics"]["selfcheck"] < 1e-5 and run["numerics"]["dtype"] == "float32"
    assert caller.get("runs")["runs"][0]["run"] == run["run"]
    assert caller.get(f"runs/{run['run']}") == run
    pieces = caller.get("models/m0/vocab?ids=" + ",".join(str(t["id"]) for t in tokens))["tokens"]
    assert all(pieces[str(t["id"])] == t["s"] for t in tokens)
    assert len(caller.get("models/m0/vocab?from=3")["tokens"]) == told["models"][0]["vocab"] - 3


@pytest.fixture
def tape(caller, run):
    served = caller.explorer.models["m0"]
    ids = torch.tensor([[t["id"] for t in run["tokens"]["decoder"]]])
    with torch.no_grad(), served.model.record(v=True) as tape:
        served.model(input_ids=ids)
    return tape


def test_patterns_in_each_encoding(caller, run, tape):
    base, whole = f"runs/{run['run']}/attn/decoder", tape.pattern(1)[0].numpy()
    T = whole.shape[1]
    exact = caller.get(f"{base}/1?enc=f32")
    assert numpy.array_equal(exact["pattern"], whole)
    root = caller.get(f"{base}/1")
    assert abs(weights(root["pattern"]) - whole).max() < 0.004 and root.about["enc"] == "u8sqrt"
    half = caller.get(f"{base}/1?enc=f16&heads=1-2&rows=2:5&cols=0:3")["pattern"]
    assert half.shape == (2, 3, 3) and abs(half - whole[1:3, 2:5, :3]).max() < 3e-4
    packed = caller.get(f"{base}/1?layout=tri&enc=f32")["pattern"]
    assert numpy.array_equal(packed, whole[:, *numpy.tril_indices(T)])
    some = caller.get(f"{base}/1?layout=tri&enc=f32&rows=2:4")["pattern"]
    assert numpy.array_equal(some[0], numpy.concatenate([whole[0, 2, :3], whole[0, 3, :4]]))
    row = caller.get(f"{base}/1/3/row/{T - 1}")["row"]
    assert abs(row - whole[3, T - 1]).max() < 1e-6
    norm = caller.get(f"{base}/1?value=norm&enc=f32")["pattern"]
    assert abs(norm - tape.values_norm(1)[0].numpy()).max() < 1e-6
    top = caller.get(f"{base}/1/topk?k=3")
    assert top["index"].dtype == numpy.uint16
    found = numpy.take_along_axis(whole, top["index"].astype(int), -1)
    assert abs(weights(top["weight"]) - found).max() < 0.004
    assert abs(found.sum(-1) + top["rest"] - 1).max() < 1e-3, "the remainder is told"


def test_overview_is_the_largest_of_each_tile(caller, run, tape):
    told = caller.get(f"runs/{run['run']}/attn/decoder/overview?pool=4")
    assert told["pattern"].shape == (2, 4, 4, 4) and told.about["pool"] == "4"
    whole = tape.pattern(1)[0].numpy()
    assert abs(weights(told["pattern"])[1].max((1, 2)) - whole.max((1, 2))).max() < 0.004
    entropy = -(whole * numpy.log(whole.clip(1e-30))).sum(-1).mean(-1)
    assert abs(told["entropy"][1] - entropy).max() < 1e-5
    one = caller.get(f"runs/{run['run']}/attn/decoder/overview?pool=4&layers=1-1")
    assert numpy.array_equal(one["pattern"], told["pattern"][1:]) and one.about["layers"] == "1"


@pytest.mark.parametrize("name", ["llama", "bloom", "t5", "gemma2", "bert"])
def test_products_of_queries_and_keys_are_the_scores(name, tmp_path, loopback):
    """RoPE and grouped heads, ALiBi, buckets, a soft cap and a window, both directions."""
    from serve.caller import Caller
    more = {"kv_heads": 2} if name == "llama" else {}
    caller = Caller({name: mirada.build(name, size="tiny", seed=1, **more)})
    loopback(caller.explorer.port)
    run = caller.run([5, 9, 11, 30, 7, 9])
    for stack in run["model"]["stacks"]:
        there = stack["layers"][1]
        T = len(run["tokens"][stack["queries"]])
        i = T - 1
        told = caller.get(f"runs/{run['run']}/qk/{stack['id']}/1/3?i={i}")
        seen = numpy.isfinite(told["score"])
        dot = told["k"] @ told["q"] * float(told.about["scale"])
        assert abs(dot - told["dot"]).max() < 1e-5
        assert abs((told["dot"] + told["bias"] - told["score"])[seen]).max() < 1e-5
        soft = numpy.exp(told["score"] - told["score"][seen].max())
        assert abs(soft / soft.sum() - told["weight"]).max() < 1e-5
        exact = caller.get(f"runs/{run['run']}/attn/{stack['id']}/1/3/row/{i}")["row"]
        assert abs(exact - told["weight"]).max() < 1e-6
        score = caller.get(f"runs/{run['run']}/attn/{stack['id']}/1?value=score")["pattern"]
        assert numpy.allclose(score[3, i], told["score"], atol=1e-6)
        assert int(told.about["kv_head"]) == 3 * there["kv_heads"] // there["heads"]
        one = caller.get(f"runs/{run['run']}/qk/{stack['id']}/1/3?i={i}&j=0")
        assert one["k"].shape[0] == 1 and numpy.array_equal(one["k"][0], told["k"][0])
    caller.explorer.stop()


def test_streams_boxes_and_logits(caller, run):
    base, T = f"runs/{run['run']}", len(run["tokens"]["decoder"])
    lengths = caller.get(f"{base}/resid")
    assert lengths["x"].shape == (3, T) and lengths["attn"].shape == lengths["mlp"].shape == (2, T)
    served = caller.explorer.models["m0"]
    ids = torch.tensor([[t["id"] for t in run["tokens"]["decoder"]]])
    with torch.no_grad(), served.model.record(resid="sublayers") as tape:
        out = served.model(input_ids=ids)
    stream = torch.stack([tape.resid(n)[0].norm(dim=-1) for n in (0, 1, -1)]).numpy()
    assert abs(lengths["x"] - stream).max() < 1e-5
    assert abs(lengths["mlp"][1] - tape.added(1, "mlp")[0].norm(dim=-1).numpy()).max() < 1e-5
    box = caller.get(f"{base}/node/decoder.1.mlp.add?pos=2")
    assert abs(numpy.array(box["values"]) - tape.resid(-1)[0, 2, :64].numpy()).max() < 1e-5
    exact = caller.get(f"{base}/logits/2")["logits"]
    assert abs(exact - out.logits[0, 2].numpy()).max() < 1e-5
    assert caller.get(f"{base}/logits/2?enc=f16")["logits"].dtype == numpy.float16


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "bart", "gptj", "gemma2", "albert",
                                  "mixtral"])
def test_boxes_are_what_ran(name):
    """Every module with weights or arithmetic that ran lies in a box that ran, and no box more."""
    from mirada.serve import graph, runs, served
    model = mirada.build(name, size="tiny", seed=0)
    run = runs.make(served.Served("m0", model, name), {"ids": [3, 4, 5]})
    told = run.data()["graph"]
    fulfils(told, "graph")
    ran, handles = set(), []
    for module in model.modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(lambda m, args, out: ran.add(m)))
    with torch.no_grad():
        model(**run.batch)
    for handle in handles:
        handle.remove()
    boxes = graph.plan(model)
    assert [n["id"] for n in told["nodes"]] == run.passed.ran
    assert set(run.passed.ran) == set(boxes), "each planned box ran, once"
    assert len(run.passed.ran) == len(boxes)
    inside = {m for box in boxes.values() for m in box.module.modules()}
    assert {type(m).__name__ for m in ran - inside} <= {"Identity"}
    order = {n["id"]: i for i, n in enumerate(told["nodes"])}
    assert all(order[a] < order[b] for a, b in told["edges"])
    assert {b for _, b in told["edges"]} | {"encoder.embed", "decoder.embed"} >= set(order)


def test_pairs_masks_labels_and_translators(caller):
    pair = caller.run("Diego eats pizza", model="m1", pair="Pizza eats Diego")
    seqs = [t["seq"] for t in pair["tokens"]["encoder"]]
    assert 0 in seqs and 1 in seqs and seqs[0] is None and pair["caps"].count("mask") == 1
    ids = [t["id"] for t in pair["tokens"]["encoder"]]
    mask = pair["model"]["special"]["mask"]
    hidden = caller.run([*ids[:2], mask, *ids[3:]], model="m1")
    assert caller.get(f"runs/{hidden['run']}/logits/2")["logits"].shape == (
        hidden["model"]["vocab"],)
    both = caller.run([5, 6, 7], model="m2", target_ids=[0, 8])
    assert {s["id"] for s in both["model"]["stacks"]} == {"encoder", "decoder", "cross"}
    cross = caller.get(f"runs/{both['run']}/attn/cross/0?enc=f32")["pattern"]
    assert cross.shape[1:] == (2, 3) and abs(cross.sum(-1) - 1).max() < 1e-5
    judged = caller.run([5, 6, 7], model="m3")
    assert len(caller.get(f"runs/{judged['run']}/logits/0")["logits"]) == 2


def test_hostile_tokens_stay_text(caller):
    run = caller.run(f"{HOSTILE}\x00\u202e 👩‍👩‍👧")
    assert HOSTILE.replace(" ", "·") in [t["s"] for t in run["tokens"]["decoder"]]
    _, headers, content = caller.send("GET", f"/x/v1/runs/{run['run']}")
    assert b"<" not in content and b">" not in content, "no reader can take it for markup"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_clear_refusals(caller, run):
    base = f"runs/{run['run']}"
    for path, status, said in (
            ("runs/r_000000000000", 404, "no such run"), (f"{base}/attn/encoder/0", 404, "stack"),
            (f"{base}/attn/decoder/9", 404, "layer 9"), ("nothing", 404, "no such call"),
            (f"{base}/attn/decoder/0/99/row/0", 404, "head 99"),
            (f"{base}/attn/decoder/0?rows=3:2", 400, "rows="),
            (f"{base}/attn/decoder/0?row=3", 400, "no parameter 'row'"),
            (f"{base}/attn/decoder/0?enc=f64", 400, "enc="),
            (f"{base}/attn/decoder/0?value=score&enc=u8sqrt", 400, "negative"),
            (f"{base}/qk/decoder/0/0", 400, "i= is missing"),
            (f"{base}/logits/999", 404, "pos 999"), ("models/m9", 404, "no such model")):
        assert said in caller.get(path, status)["error"]["message"]
    for body, status, said in (
            ({"inputs": {}}, 400, "text or ids"), ({"inputs": {"text": ""}}, 400, "empty"),
            ({"inputs": {"text": "a", "ids": [1]}}, 400, "one of the two"),
            ({"inputs": {"ids": [10**6]}}, 400, "vocabulary"),
            ({"inputs": {"ids": [1] * 500}}, 400, "500 tokens and at most 256"),
            ({"inputs": {"text": "a", "batch": 2}}, 400, "inputs.batch is not known"),
            ({"input": "a"}, 400, "inputs is missing"), ([], 400, "type object"),
            ({"inputs": {"text": "a"}, "model": "m9"}, 404, "no such model")):
        assert said in caller.post("runs", body, status)["error"]["message"]
    status, _, content = caller.send("PUT", "/x/v1/runs")
    assert status == 405
    fulfils(json.loads(content), "error")


def test_too_much_is_refused_before_it_is_made(caller, monkeypatch):
    from mirada.serve import packing
    run = caller.run([1] * 256)
    monkeypatch.setattr(packing, "ANSWER", 100_000)
    told = caller.get(f"runs/{run['run']}/attn/decoder/0?enc=f32", 413)["error"]
    assert told["type"] == "too_large" and "rows=" in told["advice"]
    assert caller.get(f"runs/{run['run']}/attn/decoder/overview?pool=32")["pattern"].size


def test_every_route_is_in_the_schema():
    told = {route.partition("?")[0] for route in schema.read()["routes"]}
    shapes = {"r_[0-9a-f]{12}": "{run}", "m[0-9]{1,3}": "{model}", "j_[0-9a-f]{12}": "{job}"}
    for method, pattern, _ in ROUTES:
        for shape, name in shapes.items():
            pattern = pattern.replace(f"({shape})", name)
        words = pattern.split("/")
        assert any(method == route.split(" ")[0] and _alike(words, route.split("/x/v1/")[1])
                   for route in told), pattern


def _alike(words: list[str], route: str) -> bool:
    route = route.split("/")
    return len(words) == len(route) and all(
        a == b or (b.startswith("{") and a.startswith("("))
        for a, b in zip(words, route, strict=True))


REQUESTS = ("run_request", "intervention_request", "sweep_request", "roles_request",
            "firing_request")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False)
    | st.sampled_from(["zero", "mean", "head_out", "all", "es", "x", "decoder", "default"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["inputs", "text", "ids", "model", "record", "qk", "interventions", "site",
                         "layer", "op", "heads", "pos", "factor", "stack", "lang", "suite",
                         "neurons", "texts", "source", "apart", "null", "write"]),
        inner, max_size=4), max_leaves=8)


@given(VALUES, st.sampled_from(REQUESTS))
def test_our_reading_of_the_schema_is_the_standards(value, name):
    try:
        schema.check(value, name)
        ours = True
    except Refused:
        ours = False
    try:
        fulfils(value, name)
        theirs = True
    except jsonschema.ValidationError:
        theirs = False
    if ours != theirs:  # the standard takes 1.0 for a whole number; an id of ours is written 1
        assert theirs and _whole_float(value)


def _whole_float(value) -> bool:
    if isinstance(value, dict):
        return any(map(_whole_float, value.values()))
    if isinstance(value, list):
        return any(map(_whole_float, value))
    return isinstance(value, float) and value.is_integer()
