"""What a run answers besides its patterns: lens, attribution, neurons, flow, experiments."""

import json
import re
import subprocess
import sys
import time

import numpy
import pytest
import torch

import mirada
from mirada.generate import sampling
from mirada.generate.options import Options
from serve.caller import TEXT, fulfils


@pytest.fixture
def model(caller):
    return caller.explorer.models["m0"].model


@pytest.fixture
def ids(run):
    return torch.tensor([[t["id"] for t in run["tokens"]["decoder"]]])


def test_the_last_depth_of_the_lens_is_the_model(caller, run, model, ids):
    told = caller.get(f"runs/{run['run']}/lens?top=4&token=7")
    with torch.no_grad():
        own = model(input_ids=ids).logits[0].softmax(-1)
    best = own.topk(4)
    assert numpy.array_equal(told["id"][-1], best.indices.numpy())
    assert abs(told["p"][-1] - best.values.numpy()).max() < 1e-6
    assert abs(told["chosen_p"][-1] - own[:, 7].numpy()).max() < 1e-7
    rank = (own > own[:, 7:8]).sum(-1)
    assert numpy.array_equal(told["chosen_rank"][-1], rank.numpy())
    assert json.loads(told.about["depths"]) == ["embed", "1", "2"]
    labels = json.loads(told.about["labels"])
    assert all(str(n) in labels for n in told["id"].ravel())
    some = caller.get(f"runs/{run['run']}/lens?top=4&rows=2:4")
    assert numpy.array_equal(some["id"], told["id"][:, 2:4])


def test_terms_add_up_to_the_logit(caller, run, model, ids):
    told = caller.get(f"runs/{run['run']}/dla?pos=3&token=11")
    with torch.no_grad():
        own = model(input_ids=ids).logits[0, 3, 11].item()
    assert abs(told["logit"] - own) < 1e-4 and abs(told["sum"] - own) < 1e-3
    assert abs(sum(t["value"] for t in told["terms"]) - told["sum"]) < 1e-9
    assert sum(t["kind"] == "head" for t in told["terms"]) == 8


def test_neurons_and_flow(caller, run, model, ids):
    told = caller.get(f"runs/{run['run']}/mlp/1?pos=2&top=5")
    with torch.no_grad(), model.record(mlp=True) as tape:
        model(input_ids=ids)
    fired = tape.mlp(1)[0]
    for unit in told["neurons"]:
        assert abs(unit["value"] - fired[2, unit["neuron"]].item()) < 1e-6
        assert len(unit["strip"]) == ids.shape[1] and len(unit["promoted"]) == 6
    whole = caller.get(f"runs/{run['run']}/flow")["rollout"]
    assert abs(whole.sum(-1) - 1).max() < 1e-5
    one = caller.get(f"runs/{run['run']}/flow?from=4")["rollout"]
    assert abs(one[0] - whole[4]).max() < 1e-6
    for method in ("maxflow", "routes"):
        told = caller.get(f"runs/{run['run']}/flow?method={method}&from=4")
        assert told["from"] == 4 and "not a cause" in told["note"] and len(told["edges"]) <= 2000
    long = caller.run([3] * 70)
    assert "64 tokens" in caller.get(f"runs/{long['run']}/flow?method=maxflow", 400)[
        "error"]["message"]


def test_redundant_heads(caller, run):
    told = caller.get(f"runs/{run['run']}/redundancy")
    assert told["distance"].shape == told["cosine"].shape == (8, 8)
    assert abs(told["cosine"].diagonal() - 1).max() < 1e-4 and not told["distance"].diagonal().any()
    assert json.loads(told.about["heads"])[5] == [1, 1] and len(told["cluster"]) == 8


def test_no_change_changes_no_bit(caller, run):
    told = caller.post(f"runs/{run['run']}/interventions", {"interventions": []})
    assert told["identical"] and told["metrics"] == {"logit_diff": 0, "kl": 0, "probability": 0}
    own = [{"site": "resid", "layer": 1, "op": "patch", "source": run["run"]}]
    assert caller.post(f"runs/{run['run']}/interventions", {"interventions": own})["identical"]


@pytest.mark.parametrize("change", [
    {"site": "head_out", "layer": 1, "heads": [2], "op": "mean"},
    {"site": "edge", "layer": 0, "heads": [1], "op": "knockout", "query": 4, "key": 2},
    {"site": "mlp", "layer": 1, "op": "scale", "factor": 0.5, "pos": [4]},
    {"site": "value", "layer": 0, "heads": [0, 1], "op": "zero", "pos": [0]},
    {"site": "resid", "layer": 1, "op": "patch", "source": "other", "pos": [2]},
    {"site": "pattern", "layer": 0, "op": "freeze", "source": "other"},
])
def test_an_effect_and_its_snippet_are_one_number(caller, change, tmp_path, model):
    run, other = caller.run([9, 8, 7, 6, 5]), caller.run([9, 8, 12, 6, 5])
    if "source" in change:
        change = {**change, "source": other["run"]}
    told = caller.post(f"runs/{run['run']}/interventions", {"interventions": [change], "pos": 4})
    before, after = told["before"], told["after"]
    assert not told["identical"] and told["metrics"]["kl"] > 0
    assert told["metrics"]["logit_diff"] == after["logit_diff"] - before["logit_diff"]
    assert before["top"][0]["id"] == told["token"]["id"] and len(after["top"]) == 10
    found = []
    code = re.sub(r"mirada\.load\(.*\)", "model", told["snippet"])
    code = code.replace("print(", "found.append(")
    exec(compile(code, "snippet", "exec"), {"model": model, "found": found})
    assert abs(found[0] - told["metrics"]["logit_diff"]) <= 1e-6


def test_refused_changes(caller, run):
    base = f"runs/{run['run']}/interventions"
    bert = caller.run([5, 6, 7], model="m1")
    for change, status, said in (
            ({"site": "head_out", "layer": 9, "op": "zero"}, 400, "layer 9 does not exist"),
            ({"site": "edge", "layer": 0, "op": "zero"}, 400, "knockout"),
            ({"site": "resid", "layer": 0, "op": "patch", "source": "r_0"}, 404, "no such run"),
            ({"site": "resid", "layer": 0, "op": "patch", "source": bert["run"]}, 409, "another"),
            ({"site": "resid", "layer": 0, "op": "resample"}, 400, "give source"),
            ({"site": "resid", "layer": 0, "op": "zero", "pos": [999]}, 400, "999")):
        told = caller.post(base, {"interventions": [change]}, status)["error"]
        assert said in told["message"]
    short = caller.run([5, 6, 7])
    told = caller.post(base, {"interventions": [
        {"site": "resid", "layer": 0, "op": "patch", "source": short["run"]}]}, 400)["error"]
    assert "tokens" in told["message"] and "[-" in told["message"], "the aligned difference"


def wait(caller, job: dict) -> dict:
    end = time.monotonic() + 60
    while job["state"] == "running" and time.monotonic() < end:
        time.sleep(0.02)
        job = caller.get(f"jobs/{job['job']}")
    return job


def test_a_sweep_is_each_ablation_alone(caller):
    run = caller.run([9, 8, 7, 6, 5])
    job = caller.post(f"runs/{run['run']}/sweep", {"op": "zero", "token": 3, "other": 4}, 202)
    done = wait(caller, job)
    assert done["state"] == "done" and done["done"] == done["total"] == 2
    change = {"site": "head_out", "layer": 1, "heads": [3], "op": "zero"}
    told = caller.post(f"runs/{run['run']}/interventions",
                       {"interventions": [change], "token": 3, "other": 4})
    assert abs(done["result"]["effects"][1][3] - told["metrics"]["logit_diff"]) < 1e-5
    assert abs(done["result"]["before"] - told["before"]["logit_diff"]) < 1e-6
    _, headers, content = caller.send("GET", f"/x/v1/jobs/{job['job']}/events")
    assert headers["Content-Type"] == "text/event-stream"
    event, data = content.decode().strip().split("\n")
    assert event == "event: done"
    fulfils(json.loads(data.removeprefix("data: ")), "job")


@pytest.mark.parametrize("site, places", [("head_out", 4), ("resid", 5), ("mlp", 1)])
def test_a_sweep_of_patches_is_each_patch_alone(caller, model, site, places):
    run, donor = caller.run([9, 8, 7, 6, 5]), caller.run([9, 8, 12, 6, 5])
    asked = {"op": "patch", "site": site, "source": donor["run"], "token": 3, "other": 4}
    job = caller.post(f"runs/{run['run']}/sweep", asked, 202)
    result = wait(caller, job)["result"]
    assert [len(row) for row in result["effects"]] == [places, places]
    place = places // 2
    where = {"head_out": {"heads": [place]}, "resid": {"pos": [place]}, "mlp": {}}[site]
    told = caller.post(f"runs/{run['run']}/interventions", {"interventions": [
        {"site": site, "layer": 1, "op": "patch", "source": donor["run"], **where}],
        "token": 3, "other": 4})
    assert abs(result["effects"][1][place] - told["metrics"]["logit_diff"]) < 1e-5
    found = []
    code = re.sub(r"mirada\.load\(.*\)", "model", result["snippet"])
    exec(compile(code.replace("print(", "found.append("), "snippet", "exec"),
         {"model": model, "found": found})
    assert abs(found[0][1, place].item() - result["effects"][1][place]) < 1e-6


def test_a_sweep_of_patches_needs_a_text_that_fits(caller, run):
    base, short = f"runs/{run['run']}/sweep", caller.run([5, 6, 7])
    told = caller.post(base, {"op": "patch", "source": short["run"]}, 400)["error"]["message"]
    assert "[-" in told and "same number of tokens" in told
    assert "give source" in caller.post(base, {"op": "patch"}, 400)["error"]["message"]
    bert = caller.run([5, 6, 7], model="m1")
    assert "another" in caller.post(base, {"op": "patch", "source": bert["run"]}, 409)[
        "error"]["message"]


def test_changes_apart_and_beside_other_heads(caller, run):
    changes = [{"site": "head_out", "layer": n, "heads": [2], "op": "zero"} for n in (0, 1)]
    base = f"runs/{run['run']}/interventions"
    told = caller.post(base, {"interventions": changes, "apart": True, "null": 8})
    alone = [caller.post(base, {"interventions": [c]})["metrics"]["logit_diff"] for c in changes]
    assert told["apart"] == pytest.approx(alone, abs=1e-6) and 0 <= told["percentile"] <= 100
    assert (told["percentile"] * 8 / 100).is_integer()
    mlp = [{"site": "mlp", "layer": 0, "op": "zero"}]
    said = caller.post(base, {"interventions": mlp, "null": 8}, 400)["error"]["message"]
    assert "heads" in said


def test_where_neurons_fire_in_a_users_texts(caller, model):
    texts = ["Diego eats pizza", "Pizza eats Diego"]
    asked = {"layer": 1, "neurons": [3, 7], "texts": texts, "top": 2}
    found = wait(caller, caller.post("models/m0/firing", asked, 202))["result"]
    own = mirada.look.top_tokens(model, texts, 1, [3, 7], k=2).data()
    assert found["hits"] == own["hits"] and found["texts"] == 2 and found["stack"] == "decoder"
    wrong = wait(caller, caller.post("models/m0/firing", {**asked, "stack": "encoder"}, 202))
    assert wrong["state"] == "failed" and "no encoder" in wrong["error"]["message"]


def test_the_model_writes_first(caller, model, ids):
    told = caller.run(TEXT, write=5)
    rows = told["tokens"]["decoder"]
    assert [t["id"] for t in rows] == model.generate(ids, max_new_tokens=5, do_sample=False)[
        0].tolist()
    assert rows[-1]["b"] is None and rows[0]["b"][0] == 0
    said = caller.run("x", 400, model="m1", write=3)["error"]["message"]
    assert "writes no text" in said


def test_a_job_is_cancelled_between_passes(caller):
    job = caller.post("models/m0/roles", {"suite": "quick", "lang": "es"}, 202)
    another = caller.post("models/m0/roles", {"suite": "quick"}, 202)
    refused = caller.post("models/m0/roles", {}, 429)["error"]
    assert refused["type"] == "busy"
    run = caller.run([1, 2, 3])  # a call is answered while jobs run
    assert caller.get(f"runs/{run['run']}/logits/2")["logits"].size
    for one in (job, another):
        assert caller._read("DELETE", f"jobs/{one['job']}", caller.send(
            "DELETE", f"/x/v1/jobs/{one['job']}"), 200)["job"] == one["job"]
        assert wait(caller, one)["state"] in ("cancelled", "done")


def test_sampling_on_the_page_reads_the_samplers_own_scores(caller, run, model, ids):
    """The page filters these logits itself; they must be what Python's sampler is given."""
    sent = torch.from_numpy(caller.get(f"runs/{run['run']}/logits/{ids.shape[1] - 1}")["logits"])
    with torch.no_grad():
        own = model(input_ids=ids).logits[:, -1]
    for t in (0.2, 0.7, 1.0, 2.0, 5.0):
        for p in (0.1, 0.5, 0.9, 1.0):
            options = Options(do_sample=True, temperature=t, top_p=p)
            a, b = (sampling.warp(x, options).softmax(-1) for x in (own, sent[None]))
            assert (a - b).abs().max() <= 1e-4


PROGRAM = """
import sys, threading, mirada
from mirada.serve.explorer import Explorer
e = Explorer({"gpt": mirada.build("gpt2", size="tiny", seed=3)})
s = e.listen()
print(e.url, flush=True)
s.serve_forever(0.05)
"""


def test_a_killed_server_leaves_nothing_behind(loopback):
    from urllib.request import ProxyHandler, Request, build_opener
    open_ = build_opener(ProxyHandler({})).open
    child = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    url = child.stdout.readline().strip()
    port = int(url.split(":")[2].split("/")[0])
    loopback(port)
    token = url.split("token=")[1]
    asked = Request(f"http://127.0.0.1:{port}/x/v1/models",
                    headers={"Authorization": f"Bearer {token}"})
    assert open_(asked, timeout=10).status == 200
    child.kill()
    child.wait(10)
    began = time.monotonic()
    with pytest.raises(OSError):
        open_(asked, timeout=10)
    assert time.monotonic() - began < 2, "refused at once, so that the page can say so"


def test_two_tabs_share_runs_and_change_nothing_of_each_other(caller):
    from concurrent.futures import ThreadPoolExecutor
    run, whole = caller.run(TEXT), {}
    paths = [f"runs/{run['run']}/attn/decoder/{n}?enc=f32" for n in (0, 1)]
    whole = {path: caller.get(path)["pattern"] for path in paths}
    alone = caller.post(f"runs/{run['run']}/interventions", {"interventions": [
        {"site": "head_out", "layer": 0, "op": "zero"}]})

    def tab(n):
        if n % 3 == 0:
            told = caller.post(f"runs/{run['run']}/interventions", {"interventions": [
                {"site": "head_out", "layer": 0, "op": "zero"}]})
            return told["metrics"] == alone["metrics"]
        if n % 3 == 1:
            made = caller.run(TEXT)
            return numpy.array_equal(whole[paths[0]], caller.get(
                f"runs/{made['run']}/attn/decoder/0?enc=f32")["pattern"])
        return numpy.array_equal(whole[paths[1]], caller.get(paths[1])["pattern"])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(tab, range(24)))


def test_the_twin_of_a_model_shares_its_weights(caller):
    served = caller.explorer.models["m0"]
    twin = served.twin()
    own = dict(served.model.named_parameters())
    assert all(p is own[name] for name, p in twin.named_parameters())
    assert not set(twin.modules()) & set(served.model.modules())
    assert twin.tokenizer is served.model.tokenizer
    assert mirada.describe(twin).parameters == mirada.describe(served.model).parameters
