"""Recordings come and go; answers stay. Run files open without their model, and strangers' do no
harm."""

import io
import json
import zipfile

import numpy
import pytest

import mirada
from mirada.errors import UntrustedInputError
from mirada.serve import runfile
from serve.caller import TEXT, Caller, fulfils, models


@pytest.fixture(scope="module")
def small():
    """A server that holds two recordings of 64 tokens, and no third."""
    model = mirada.build("gpt2", size="tiny", seed=3)
    caller = Caller({"gpt": model})
    caller.explorer.runs.room = 2 * 120_000
    yield caller
    caller.explorer.stop()


def test_eviction_is_seen_and_undone(small, loopback):
    loopback(small.explorer.port)
    first = small.run(list(range(64)))
    assert 110_000 < first["bytes"] < 120_000, "q, k and v, and what the head reads"
    path = f"runs/{first['run']}/attn/decoder/1?enc=f32"
    whole = small.get(path)["pattern"]
    _, headers, _ = small.send("GET", f"/x/v1/{path}")
    second = small.run(list(range(64, 128)))
    small.get(f"runs/{first['run']}/logits/3")  # the first is used: the second goes
    small.run(list(range(128, 192)))
    states = {r["run"]: r["state"] for r in small.get("runs")["runs"]}
    assert states[first["run"]] == "kept" and states[second["run"]] == "evicted"
    assert small.get("runs")["kept_bytes"] <= small.explorer.runs.room
    told = small.get(f"runs/{second['run']}")
    assert told["state"] == "evicted" and len(told["tokens"]["decoder"]) == 64
    for gone in ("attn/decoder/0", "logits/3", "lens", "dla", "mlp/0", "flow", "qk/decoder/0/0?i=3",
                 "attn/decoder/overview", "node/head", "export"):
        refused = small.get(f"runs/{second['run']}/{gone}", 410)["error"]
        assert refused["type"] == "evicted" and "recompute" in refused["advice"]
    assert small.post(f"runs/{second['run']}/interventions", {"interventions": []}, 410)
    assert small.post(f"runs/{second['run']}/recompute", {})["state"] == "kept"
    assert small.get(f"runs/{first['run']}")["state"] == "evicted"
    small.post(f"runs/{first['run']}/recompute", {})
    assert numpy.array_equal(small.get(path)["pattern"], whole), "the same pass, the same bits"
    status, _, body = small.send("GET", f"/x/v1/{path}", If_None_Match=headers["ETag"])
    assert status == 304 and not body
    assert "immutable" in headers["Cache-Control"]
    assert small.send("GET", f"/x/v1/runs/{first['run']}")[1]["Cache-Control"] == "no-store"


def test_a_run_too_large_to_keep_whole_says_what_is_kept(small, loopback):
    loopback(small.explorer.port)
    room, small.explorer.runs.room = small.explorer.runs.room, 60_000
    run = small.run(list(range(64)))
    small.explorer.runs.room = room
    assert run["hidden"] == {"truncated": True, "layers": 1, "notes": [
        "of 2 layers the last 1 are recorded: all would take 98.3 kB of the 60.0 kB that may be "
        "kept"]}
    assert "flow" not in run["caps"] and run["graph"]["nodes"]
    base = f"runs/{run['run']}"
    assert small.get(f"{base}/attn/decoder/overview").about["layers"] == "1"
    assert small.get(f"{base}/attn/decoder/1")["pattern"].size
    assert "layer 0" in small.get(f"{base}/attn/decoder/0", 404)["error"]["message"]
    assert small.get(f"{base}/flow", 409)
    assert small.get(f"{base}/lens")["id"].shape[0] == 3, "what runs anew is whole"


def test_a_step_records_no_attention(small, loopback):
    loopback(small.explorer.port)
    run = small.post("runs", {"inputs": {"ids": [1, 2, 3]}, "record": {"qk": False}}, 201)
    assert "attn" not in run["caps"] and run["bytes"] < 1000
    assert small.get(f"runs/{run['run']}/logits/2")["logits"].size
    told = small.get(f"runs/{run['run']}/attn/decoder/0", 404)["error"]
    assert "nothing was recorded" in told["message"]


def test_a_deleted_run_is_gone(small, loopback):
    loopback(small.explorer.port)
    run = small.run([1, 2, 3])["run"]
    assert small._read("DELETE", f"runs/{run}", small.send("DELETE", f"/x/v1/runs/{run}"), 200)
    small.get(f"runs/{run}", 404)
    small.get(f"runs/{run}/attn/decoder/0", 404)


def test_answers_are_packed_where_it_pays(small, loopback):
    import gzip
    loopback(small.explorer.port)
    run = small.run([7] * 64)
    path = f"/x/v1/runs/{run['run']}/attn/decoder/0"
    _, plain_headers, plain = small.send("GET", path)
    _, headers, packed = small.send("GET", path, Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip" and len(packed) < 0.9 * len(plain)
    assert gzip.decompress(packed) == plain and "Content-Encoding" not in plain_headers


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run, its file's parts, and its patterns."""
    from mirada.serve import runs
    from mirada.serve.served import Served
    served = Served("m0", models(tmp_path_factory.mktemp("m"))["gpt"], "gpt")
    run = runs.make(served, {"text": TEXT})
    with zipfile.ZipFile(io.BytesIO(runfile.pack(run))) as file:
        return run, {name: file.read(name) for name in file.namelist()}


def zipped(parts: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in parts.items():
            file.writestr(name, body)
    return out.getvalue()


def test_a_run_file_opens_without_its_model(exported, caller):
    run, parts = exported
    status, _, body = caller.send("POST", "/x/v1/runs/import", zipped(parts),
                                  Content_Type="application/zip")
    opened = json.loads(body)
    assert status == 201, body
    fulfils(opened, "run")
    assert not opened["model"]["live"] and opened["numerics"]["stored"] == "f16"
    assert opened["tokens"] == run.tokens and opened["caps"] == ["attn", "resid"]
    base, own = f"runs/{opened['run']}", run.tape.pattern(1)[0].numpy()
    assert abs(caller.get(f"{base}/attn/decoder/1?enc=f32")["pattern"] - own).max() < 3e-4
    assert abs(caller.get(f"{base}/attn/decoder/1/2/row/3")["row"] - own[2, 3]).max() < 3e-4
    assert caller.get(f"{base}/attn/decoder/overview?pool=4")["pattern"].shape == (2, 4, 4, 4)
    assert caller.get(f"{base}/attn/decoder/0/topk?k=2")["index"].shape[2] == 2
    assert caller.get(f"{base}/resid")["x"].shape[0] == 3
    for path in ("lens", "dla", "mlp/0", "flow", "qk/decoder/0/0?i=1", "logits/0", "node/head",
                 "attn/decoder/0?value=norm", "attn/decoder/0?value=score", "export"):
        assert caller.get(f"{base}/{path}", 409)["error"]["type"] == "conflict"
    caller.post(f"{base}/interventions", {"interventions": []}, 409)
    caller.post(f"{base}/sweep", {}, 409)
    assert opened["run"] in {r["run"] for r in caller.get("runs")["runs"]}


def manifest(parts: dict, **changes) -> dict:
    return {**parts, "manifest.json": json.dumps(
        {**json.loads(parts["manifest.json"]), **changes}).encode()}


LAYER = "attn/decoder/1.safetensors"
HARMFUL = {
    "no zip": lambda p: b"PK\x03\x04 nothing",
    "empty": lambda p: b"",
    "a path outside": lambda p: zipped({**p, "../../evil.safetensors": b""}),
    "an absolute path": lambda p: zipped({**p, "/etc/passwd": b""}),
    "another name": lambda p: zipped({**p, "attn/decoder/1.pickle": b""}),
    "no manifest": lambda p: zipped({k: v for k, v in p.items() if k != "manifest.json"}),
    "no attention": lambda p: zipped({"manifest.json": p["manifest.json"]}),
    "a manifest that is no JSON": lambda p: zipped({**p, "manifest.json": b"{"}),
    "a manifest too deep": lambda p: zipped({**p, "manifest.json": b"[" * 200_000}),
    "an unknown key": lambda p: zipped(manifest(p, evil=1)),
    "other tokens": lambda p: zipped(manifest(p, tokens={"decoder": []})),
    "a stack of other name": lambda p: zipped(manifest(p, tokens={"evil": []})),
    "no safetensors": lambda p: zipped({**p, LAYER: b"x" * 40}),
    "a header that lies": lambda p: zipped({**p, LAYER: (1 << 62).to_bytes(8, "little")}),
    "a layer too many": lambda p: zipped({**p, "attn/decoder/7.safetensors": p[LAYER]}),
    "no weights": lambda p: zipped({**p, LAYER: scaled(p[LAYER], 3)}),
    "not a number": lambda p: zipped({**p, LAYER: scaled(p[LAYER], float("nan"))}),
    "a bomb": lambda p: zipped({**p, LAYER: bytes(runfile.MOST + 1)}),
    "a manifest too large": lambda p: zipped({**p, "manifest.json": bytes(runfile.MANIFEST + 1)}),
    "too many parts": lambda p: zipped({**p, **{f"attn/decoder/{n}.safetensors": b""
                                              for n in range(runfile.ENTRIES)}}),
    "broken bytes": lambda p: zipped(p).replace(b"attn/decoder/1", b"attn/decoder/2", 1),
}


def scaled(body: bytes, factor: float) -> bytes:
    import safetensors.numpy
    x = safetensors.numpy.load(body)["pattern"]
    return safetensors.numpy.save({"pattern": (x * numpy.float16(factor)).astype("float16")})


@pytest.mark.parametrize("harm", HARMFUL)
def test_harmful_run_files_are_refused(harm, exported, monkeypatch):
    monkeypatch.setattr(runfile, "MOST", 1 << 20)
    monkeypatch.setattr(runfile, "MANIFEST", 1 << 19)
    with pytest.raises(UntrustedInputError, match="the run file"):
        runfile.unpack(HARMFUL[harm](exported[1]))


def test_two_parts_of_one_name_are_refused(exported):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        for name, body in [*exported[1].items(), (LAYER, exported[1][LAYER])]:
            file.writestr(name, body)
    with pytest.raises(UntrustedInputError, match="one name"):
        runfile.unpack(out.getvalue())


def test_a_run_too_large_for_a_file_says_so(exported, monkeypatch):
    monkeypatch.setattr(runfile, "MOST", 1000)
    with pytest.raises(mirada.MiradaError, match="MiB as half floats"):
        runfile.pack(exported[0])
