"""Load, save and build: strict, all or nothing, bit for bit, and never two copies."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers

import mirada
from mirada import registry
from mirada.errors import MiradaError, UntrustedInputError, WorkFailed
from mirada.weights import tensorfile


def saved(folder: Path, name="gpt2:tiny", **options) -> Path:
    """A model with random weights, as a folder."""
    return mirada.save(mirada.build(name, seed=1, **options), folder / "model")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    with tensorfile.open_folder(folder) as checkpoint:
        return {name: checkpoint.get(name) for name in checkpoint.names()}


def rewrite(folder: Path, held: dict[str, torch.Tensor], **options) -> Path:
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    tensorfile.save(folder, held, **options)
    return folder


def reconfigure(folder: Path, **changes) -> Path:
    raw = json.loads((folder / "config.json").read_text()) | changes
    raw = {k: v for k, v in raw.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


# ---- strict ------------------------------------------------------------------------------------


def test_every_wrong_name_is_in_one_sentence(tmp_path):
    folder = saved(tmp_path)
    held = tensors(folder)
    held["transformer.h.9.ln_1.weight"] = held.pop("transformer.ln_f.weight")
    del held["transformer.wpe.weight"]
    with pytest.raises(MiradaError) as caught:
        mirada.load(rewrite(folder, held))
    said = str(caught.value)
    for name in ("transformer.ln_f.weight", "transformer.wpe.weight"):
        assert name in said.split("has 1 tensors")[0]
    assert "lacks 2 tensors" in said and "transformer.h.9.ln_1.weight" in said


def test_what_is_named_in_ignore_is_left_unread(tmp_path):
    folder = saved(tmp_path)
    held = tensors(folder)
    rewrite(folder, held | {"extra.one": torch.ones(2), "extra.two": torch.ones(2)})
    reconfigure(folder, gap_size=3)
    with pytest.raises(MiradaError, match="gap_size.*value 3.*ignore=..gap_size"):
        mirada.load(folder)
    with pytest.raises(MiradaError, match="extra.two"):
        mirada.load(folder, ignore=["gap_size", r"^extra\.one$"])
    model = mirada.load(folder, ignore=["gap_size", r"^extra\."])
    assert "left out" in model.origin.ignored["gap_size"]
    assert any("gap_size" in note for note in mirada.describe(model).notes)


@pytest.mark.parametrize("shape", [(63,), (65,), (64, 1), (), (0,)])
def test_a_wrong_shape_is_named_before_any_data_is_read(tmp_path, shape, monkeypatch):
    folder = saved(tmp_path)
    rewrite(folder, tensors(folder) | {"transformer.ln_f.bias": torch.zeros(shape)})
    monkeypatch.setattr(tensorfile.Checkpoint, "get", lambda *a: pytest.fail("data was read"))
    with pytest.raises(MiradaError, match=re.escape(f"'transformer.ln_f.bias' {list(shape)}")):
        mirada.load(folder)


def test_a_fused_tensor_of_wrong_shape_is_named(tmp_path):
    folder = saved(tmp_path)
    for wrong in (torch.zeros(64, 191), torch.zeros(192), torch.tensor(1.0)):
        rewrite(folder, tensors(folder) | {"transformer.h.0.attn.c_attn.weight": wrong})
        with pytest.raises(MiradaError, match="h.0.attn.c_attn.weight.*does not fit"):
            mirada.load(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_nothing_can_be_computed_with(tmp_path, dtype):
    folder = saved(tmp_path)
    held = tensors(folder)
    rewrite(folder, held | {"transformer.ln_f.bias": held["transformer.ln_f.bias"].to(dtype)})
    with pytest.raises(MiradaError, match="ln_f.bias.*nothing can be computed"):
        mirada.load(folder)


def test_whole_numbers_for_weights_are_refused_whatever_dtype_says(tmp_path):
    folder = saved(tmp_path)
    rewrite(folder, tensors(folder) | {"transformer.ln_f.bias": torch.ones(64).long()})
    with pytest.raises(MiradaError, match="ln_f.bias.*nothing can be computed"):
        mirada.load(folder, dtype=torch.float32)


# ---- names in files ----------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertModel", "BertForQuestionAnswering"])
def test_bare_and_headed_files_stay_as_they_came(tmp_path, head):
    folder = saved(tmp_path, "bert:tiny", architecture=head)
    held = tensors(folder)
    assert any(n.startswith("bert.") for n in held) == (head != "BertModel")
    other = {n.removeprefix("bert.") if head != "BertModel" else "bert." + n: t
             for n, t in held.items()}
    before = mirada.load(folder)
    after = mirada.load(rewrite(folder, other))
    ids = torch.tensor([[5, 6, 7]])
    for name, value in before(ids).items():
        assert torch.equal(value, after(ids)[name])
    assert tensors(mirada.save(after, tmp_path / "again")).keys() == other.keys()


def test_older_spellings_load_and_go_back_as_they_came(tmp_path):
    folder = saved(tmp_path, "bert:tiny")
    held = tensors(folder)
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"): t for n, t in held.items()}
    assert len(old.keys() - held.keys()) == 12
    model = mirada.load(rewrite(folder, old))
    ids, new = torch.tensor([[5, 6, 7]]), saved(tmp_path / "new", "bert:tiny")
    assert torch.equal(model(ids).logits, mirada.load(new)(ids).logits)
    assert tensors(mirada.save(model, tmp_path / "again")).keys() == old.keys()


def test_carried_and_derived_tensors_are_written_back(tmp_path):
    folder = saved(tmp_path, "bert:tiny")
    held = tensors(folder) | {
        "bert.pooler.dense.weight": torch.randn(64, 64), "bert.pooler.dense.bias": torch.randn(64),
        "bert.embeddings.position_ids": torch.arange(128)[None]}
    model = mirada.load(rewrite(folder, held))
    assert "bert.pooler.dense.bias" in model.origin.carried
    assert any("bert.pooler.dense.bias" in note for note in mirada.describe(model).notes)
    again = tensors(mirada.save(model, tmp_path / "again"))
    assert again.keys() == held.keys()
    assert all(torch.equal(held[n], again[n]) for n in held)


def test_a_tied_tensor_that_the_file_repeats_must_be_equal(tmp_path):
    folder = saved(tmp_path)
    held = tensors(folder)
    assert "lm_head.weight" not in held  # tied weights are written once
    held["lm_head.weight"] = held["transformer.wte.weight"].clone()
    model = mirada.load(rewrite(folder, held))
    assert model.head.out.weight is model.body.embed.token.weight
    again = tensors(mirada.save(model, tmp_path / "again"))
    assert again.keys() == held.keys()
    held["lm_head.weight"][3, 3] += 1e-3
    with pytest.raises(MiradaError, match="'lm_head.weight' is the same.*tie_word_embeddings"):
        mirada.load(rewrite(folder, held))
    model = mirada.load(reconfigure(folder, tie_word_embeddings=False))
    assert torch.equal(model.head.out.weight, held["lm_head.weight"])


def test_nan_is_loaded_as_it_is_even_where_a_tensor_is_repeated(tmp_path):
    folder = saved(tmp_path)
    held = tensors(folder)
    held["transformer.wte.weight"][0, 0] = torch.nan
    held["lm_head.weight"] = held["transformer.wte.weight"].clone()
    model = mirada.load(rewrite(folder, held))
    assert torch.isnan(model.head.out.weight[0, 0])


def test_sharded_and_bin_files_are_the_same_model(tmp_path):
    folder = saved(tmp_path)
    ids, held = torch.tensor([[5, 6, 7]]), tensors(folder)
    wanted = mirada.load(folder)(ids).logits
    rewrite(folder, held, shard_bytes=200_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert torch.equal(mirada.load(folder)(ids).logits, wanted)
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(held, folder / "pytorch_model.bin")
    assert torch.equal(mirada.load(folder)(ids).logits, wanted)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "pytorch_model.bin"]


# ---- what a config says ------------------------------------------------------------------------


def test_dtype_and_architecture(tmp_path):
    folder = saved(tmp_path, dtype=torch.bfloat16)
    assert mirada.load(folder).dtype == torch.bfloat16
    model = mirada.load(folder, dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    with pytest.raises(MiradaError, match="lacks 1 tensors.*score.weight"):
        mirada.load(folder, architecture="GPT2ForSequenceClassification")
    bare = mirada.load(folder, architecture="GPT2Model")
    assert list(bare(torch.tensor([[1, 2]]))) == ["last_hidden_state"]
    with pytest.raises(UntrustedInputError, match="GPT3Model.*GPT2LMHeadModel"):
        mirada.load(folder, architecture="GPT3Model")
    for wrong in ("float32", torch.int8, torch.float8_e5m2):
        with pytest.raises(MiradaError, match="dtype=.*torch.float32"):
            mirada.load(folder, dtype=wrong)
    with pytest.raises(MiradaError, match="device='nowhere'"):
        mirada.load(folder, device="nowhere")


def test_the_names_of_labels_are_kept(tmp_path):
    names = {"0": "PER", "1": "LOC", "2": "O"}
    folder = saved(tmp_path, "bert:tiny", architecture="BertForTokenClassification", labels=3)
    raw = json.loads((folder / "config.json").read_text())
    assert raw["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    reconfigure(folder, id2label=names, label2id={v: int(k) for k, v in names.items()})
    again = mirada.save(mirada.load(folder), tmp_path / "again")
    assert json.loads((again / "config.json").read_text())["id2label"] == names
    theirs = transformers.BertForTokenClassification.from_pretrained(again)
    assert theirs.config.id2label == {0: "PER", 1: "LOC", 2: "O"} and theirs.num_labels == 3


def test_what_runs_code_is_not_written_back(tmp_path):
    folder = reconfigure(saved(tmp_path), auto_map={"AutoModel": "evil.Model"}, custom_key=...,
                         _attn_implementation_internal="someone/kernel", bos_token_id=7)
    model = mirada.load(folder)
    assert {"auto_map", "_attn_implementation_internal"} <= model.origin.ignored.keys()
    raw = json.loads((mirada.save(model, tmp_path / "again") / "config.json").read_text())
    assert raw["bos_token_id"] == 7
    assert not {"auto_map", "_attn_implementation_internal"} & raw.keys()


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_the_reference_reads_what_is_written(tmp_path, name):
    folder = saved(tmp_path, f"{name}:tiny")
    raw = json.loads((folder / "config.json").read_text())
    theirs = getattr(transformers, raw["architectures"][0])
    read, report = theirs.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    read.save_pretrained(tmp_path / "theirs")
    ours, written = tensors(folder), tensors(tmp_path / "theirs")
    assert ours.keys() == written.keys()
    assert all(torch.equal(ours[n], written[n]) for n in ours)
    for key in raw.keys() - {"dtype"}:
        assert getattr(read.config, key) == raw[key], key


def test_a_carried_dtype_says_what_the_file_holds(tmp_path):
    folder = reconfigure(saved(tmp_path), torch_dtype="float32")
    again = mirada.save(mirada.load(folder, dtype=torch.bfloat16), tmp_path / "again")
    raw = json.loads((again / "config.json").read_text())
    assert raw["dtype"] == "bfloat16" and "torch_dtype" not in raw


@pytest.mark.parametrize("wrong, said", [
    ("nowhere", "no such folder or file.*smollm2.*--hub"),
    ("file.txt", "a folder with config.json and weights, or a .gguf file"),
    ("empty", "no config.json"),
])
def test_a_source_that_is_none(tmp_path, wrong, said):
    (tmp_path / "file.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MiradaError, match=said):
        mirada.load(tmp_path / wrong)


def test_a_new_model_is_not_there_to_be_loaded():
    with pytest.raises(MiradaError, match="learned nothing: mirada train gpt2:tiny --data"):
        mirada.load("gpt2:tiny")


def test_weights_that_are_missing(tmp_path):
    folder = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MiradaError, match="no weights: looked for model.safetensors"):
        mirada.load(folder)


# ---- build -------------------------------------------------------------------------------------


@pytest.mark.scope("1.3.8")
@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_one_tensor_and_saved_once(tmp_path, tied):
    model = mirada.build("gpt2:tiny", tied=tied, seed=1)
    assert (model.head.out.weight is model.body.embed.token.weight) == tied
    folder = mirada.save(model, tmp_path / "m")
    assert ("lm_head.weight" in tensors(folder)) != tied
    other, ids = mirada.load(folder), torch.tensor([[5, 6, 7]])
    assert (other.head.out.weight is other.body.embed.token.weight) == tied
    assert torch.equal(model(ids).logits, other(ids).logits)
    x = model.body.embed(mirada.model.Inputs(ids), mirada.model.Ctx(torch.arange(3)[None]))
    wanted = model.body.embed.token.weight[ids] + model.body.embed.position.weight[:3]
    assert torch.equal(x, wanted)


def test_a_seed_gives_the_same_model_and_leaves_torchs_alone():
    before = torch.random.get_rng_state()
    a, b, c = (mirada.build("gpt2:tiny", seed=n) for n in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(registry.same_bits(x, b.state()[n]) for n, x in a.state().items())
    assert not torch.equal(a.body.embed.token.weight, c.body.embed.token.weight)


@pytest.mark.scope("1.3.10")
@pytest.mark.parametrize("name, count", [
    ("gpt2:small", 124_439_808), ("gpt2:xl", 1_557_611_200), ("gpt3:175b", 174_604_259_328),
    ("bert:base", 109_514_298)])
def test_published_sizes_take_no_memory(name, count):
    model = mirada.build(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("options, said", [
    (dict(layerz=3), "no field called 'layerz'; did you mean 'layers'"),
    (dict(layers=1, zzz=3), "no field called 'zzz' among"),
    (dict(layers="3"), "layers: '3' is not a whole number"),
    (dict(layers=0), "layers: 0 is too small"),
    (dict(d=True), "d: True is not a whole number"),
    (dict(eps=float("nan")), "eps: nan is out of range"),
    (dict(heads=7), "cannot be cut into 7 heads"),
    (dict(labels=0), "0 is not a number of labels"),
    (dict(act="gelux"), "'gelux' is not one of"),
    (dict(architecture="GPT9"), "no head called 'GPT9'.*GPT2LMHeadModel"),
    (dict(size="huge"), "no size 'huge'; it has small"),
])
def test_what_cannot_be_built(options, said):
    with pytest.raises(MiradaError, match=said):
        mirada.build("gpt2", **{"size": "tiny"} | options)


def test_families_and_their_names(monkeypatch):
    with pytest.raises(MiradaError, match="no family is called 'gpt9'; there are .*bert, .*gpt2"):
        mirada.build("gpt9")
    assert "gpt2" in mirada.families() and mirada.sizes("gpt2")[0] == "small"
    monkeypatch.setenv("MIRADA_WITHOUT", "gpt2,bert")
    assert not {"gpt2", "bert"} & set(mirada.families())
    for name in ("gpt2", "bert:base"):
        with pytest.raises(MiradaError, match="no family is called"):
            mirada.build(name, device="meta")


def test_a_hidden_family_does_not_load_either(tmp_path, monkeypatch):
    folder = saved(tmp_path)
    monkeypatch.setenv("MIRADA_WITHOUT", "gpt2")
    with pytest.raises(MiradaError, match="no family is called 'gpt2'"):
        mirada.load(folder)


# ---- save: all or nothing ----------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
            for p in sorted(folder.rglob("*"))}


def test_nothing_that_exists_is_touched(tmp_path):
    model = mirada.build("gpt2:tiny")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = tree(tmp_path)
    for name in ("full", "file", "link"):
        with pytest.raises(MiradaError, match="there already and not an empty folder; nothing was"):
            mirada.save(model, tmp_path / name)
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    mirada.save(model, tmp_path / "empty")
    mirada.save(model, tmp_path / "new" / "deep")
    for name in ("empty", "new/deep"):
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [
            "config.json", "model.safetensors"]


def test_a_model_without_numbers_is_not_saved(tmp_path):
    with pytest.raises(MiradaError, match="no numbers to save"):
        mirada.save(mirada.build("gpt2:tiny", device="meta"), tmp_path / "m")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("where", ["weights", "config", "flush", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, where):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {"weights": "mirada.weights.tensorfile.write_file",
              "config": "mirada.weights.jsonfile.write", "flush": "os.fsync",
              "rename": "os.rename"}[where]
    monkeypatch.setattr(target, full)
    with pytest.raises(WorkFailed, match="No space left"):
        mirada.save(mirada.build("gpt2:tiny"), tmp_path / "m")
    assert tree(tmp_path) == {}


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Each file and its folder are flushed before the rename, the folder that holds it after."""
    flushed, rename, inodes = [], os.rename, []
    monkeypatch.setattr("os.fsync", lambda fd: flushed.append(os.fstat(fd).st_ino))

    def noted(a, b):
        if str(b).endswith("/m"):
            inodes.extend(p.stat().st_ino for p in (*Path(a).iterdir(), Path(a)))
            assert inodes and set(inodes) <= set(flushed)
            flushed.clear()
        rename(a, b)

    monkeypatch.setattr("os.rename", noted)
    mirada.save(mirada.build("gpt2:tiny"), tmp_path / "m")
    assert len(inodes) == 3 and flushed == [tmp_path.stat().st_ino]


def test_a_file_system_that_flushes_no_folders_will_do(tmp_path, monkeypatch):
    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("os.fsync", files_only)
    mirada.save(mirada.build("gpt2:tiny"), tmp_path / "m")
    assert mirada.load(tmp_path / "m").generates


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("mirada.weights.jsonfile.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mirada.save(mirada.build("gpt2:tiny"), tmp_path / "m")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_leaves_nothing_under_the_name(tmp_path, moment):
    """Killed just before the folder appears, or just after: nothing, or all of it."""
    script = f"""
        import os, signal, mirada
        plain = os.rename
        def rename(a, b):
            if str(b).endswith("/m"):
                {'plain(a, b)' if moment == 'after' else 'pass'}
                os.kill(os.getpid(), signal.SIGKILL)
            plain(a, b)
        os.rename = rename
        mirada.save(mirada.build("gpt2:tiny", seed=1), {str(tmp_path / 'm')!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert done.returncode == -signal.SIGKILL
    if moment == "before":
        assert not (tmp_path / "m").exists()
        mirada.save(mirada.build("gpt2:tiny", seed=1), tmp_path / "m")  # and the name is free
    assert mirada.load(tmp_path / "m").generates


# ---- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["None", "torch.bfloat16"])
def test_loading_holds_one_copy(tmp_path, dtype):
    """The peak of a process that loads 200 MB: the weights, one tensor more, and a constant."""
    folder = saved(tmp_path, layers=16, d=512, heads=8, vocab=1000)  # 51 M numbers
    script = f"""
        import resource, torch, mirada
        from pathlib import Path
        def peak():
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024
        mirada.load({str(saved(tmp_path / 'small'))!r})  # what is imported on first use
        before = peak()
        model = mirada.load({str(folder)!r}, dtype={dtype})
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        print(size, peak() - before)
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True,
                          text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    size, grown = map(int, done.stdout.split())
    assert size > 100e6 and grown <= 1.15 * size + 16e6, (size, grown)
