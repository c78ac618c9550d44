"""Named sizes are what the makers published, and every family holds a field to the same bounds."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

import mirada
from mirada import registry
from mirada.errors import MiradaError
from mirada.weights import config as configs
from models.test_defaults import form, read, written

PUBLISHED = tomllib.loads((Path(__file__).parents[1] / "published.toml").read_text())
SIZES = [(name, size) for name in registry.families() for size in registry.sizes(name)
         if size != "tiny"]  # which stands for nothing outside


def file(name: str, size: str) -> dict:
    """The keys of a published config.json: what the table says over the reference's defaults."""
    said = {k: None if value == "null" else value for k, value in PUBLISHED[name][size].items()}
    types = [t for t, home in registry.FAMILIES.items() if home == name]
    kind = said.pop("model_type", types[0])
    if kind not in CONFIG_MAPPING:
        return said | {"model_type": kind}
    labels = {"num_labels": said["num_labels"]} if "num_labels" in said else {}
    return json.loads(CONFIG_MAPPING[kind](**said).to_json_string(use_diff=False)) | labels


@pytest.mark.parametrize("name, size", SIZES)
def test_a_size_is_what_was_published(name, size):
    """Fields that a size leaves to the builder (None) must come to the same thing."""
    raw, ours = file(name, size), registry.family(name).SIZES[size]
    theirs = registry._config(registry.family(name), raw, "config.json", ())[0]
    if hasattr(theirs, "settle"):  # by its tensors: untied files hold a head of their own
        theirs = theirs.settle(["lm_head.weight", "pooler.dense.weight", "pooler.layernorm.weight"])
    for f in dataclasses.fields(ours):
        if f.name == "window" and not getattr(ours, "sliding", True):
            continue  # no layer looks through it
        mine, other = getattr(ours, f.name), getattr(theirs, f.name)
        if mine is None and other is not None:
            other = _unsaid(raw["model_type"], f.name, ours, theirs)
        assert mine == other, f.name


def _unsaid(kind: str, field: str, ours, theirs):
    """None where what the file says is what the builder takes without it."""
    builders = {"kv_heads": lambda: ours.heads, "head_dim": lambda: ours.d // ours.heads,
                "decoder_layers": lambda: ours.layers, "target": lambda: ours.vocab,
                "pooled": lambda: ours.d, "hidden": lambda: 4 * ours.d}
    if field == "kinds":
        return None if form(kind, ours)[:2] == form(kind, theirs)[:2] else theirs.kinds
    if field == "pad":  # of a model made anew nothing is a pad
        return None
    said = getattr(theirs, field)
    return None if field in builders and builders[field]() == said else said


LOW = dict(  # field -> the least it may be, in all families that have it
    vocab=1, context=1, d=1, layers=1, heads=1, hidden=1, kv_heads=1, head_dim=1, eps=0, window=1,
    pad=0, eos=0, start=0, types=1, decoder_layers=1, decoder_heads=1, decoder_hidden=1,
    experts=1, top=1, buckets=4, farthest=1, cap=1e-3, logit_cap=1e-3, rope_base=2, rope_part=0,
    rope_factor=1, rope_original=2, rope_low=0, rope_high=0, rope_fast=0, rope_slow=0,
    rope_temperature=0, rope_mscale=0, rope_mscale_all=0, base=2, near_base=2, far_base=2, block=1,
    channels=1, clip=0, conv=0, conv_groups=1, depths=1, drawn=0, embedding=1, groups=1,
    image=1, inner=1, local=0, mask=0, patch=1, per=1, period=1, pooled=1, projection=1, ratio=0,
    sep=0, stage_heads=1, steepest=1, stride=1, target=1, turning=2, whole=0, rope_short=1e-6,
    rope_long=1e-6, codes=1, decoder_d=1, layer_scale=0, share=0)
LISTS = ("rope_short", "rope_long", "depths", "stage_heads")
BASE = 1e15  # of rotation
HIGH = dict(layers=2048, depths=2048, decoder_layers=2048, groups=64, inner=16, rope_base=BASE,
            rope_part=1, share=1, base=BASE, near_base=BASE, far_base=BASE)
OWN = {  # 0 or less: it has none; each side of a token is half of Longformer's window
    "deberta": dict(types=0, buckets=-1, farthest=-1), "deberta_v1": dict(types=0, farthest=-1),
    "longformer": dict(window=2), "gemma3": dict(cap=-configs.LIMIT)}


@pytest.mark.parametrize("name", registry.families())
def test_fields_of_one_name_have_one_bound(name):
    config = registry.family(name).Config
    fields = {f.name: f for f in dataclasses.fields(config) if "file" in f.metadata}
    bounded = {f for f in fields if fields[f].metadata["low"] is not None}
    assert bounded <= LOW.keys(), "say in LOW what this field may be at least"
    for field in fields.keys() & LOW.keys():
        hint = configs._hints(config)[field]
        wrap = (lambda x: (x,)) if field in LISTS else (lambda x: x)

        def checked(value, meta=fields[field].metadata, hint=hint, wrap=wrap, field=field):
            return configs._checked(wrap(value), hint, meta, "config.json", field) == wrap(value)

        least, most = OWN.get(name, {}).get(field, LOW[field]), HIGH.get(field, configs.LIMIT)
        assert checked(least) and checked(most)
        for bad in (least - (1e-9 if isinstance(least, float) else 1), most + 1):
            with pytest.raises(MiradaError):
                checked(bad)


@pytest.mark.parametrize("name", registry.families())
def test_what_must_be_said_is_asked_for(name):
    """Every count that gives a tensor its shape is required: a default would be a guess."""
    fields = {f.name: f.metadata for f in dataclasses.fields(registry.family(name).Config)
              if "file" in f.metadata}
    for field in ("vocab", "d", "layers", "heads"):
        assert field not in fields or fields[field]["required"], field


def test_the_table_has_no_size_that_is_gone():
    known = {f"{name}:{size}" for name, size in SIZES}
    assert {f"{name}:{size}" for name, rows in PUBLISHED.items() for size in rows} == known
    assert len(mirada.families()) == len(PUBLISHED)


@pytest.mark.parametrize("name", registry.families())
def test_a_declared_count_is_one_that_was_published(name):
    """Of the reference's own config or of a size; files always say it, and `build` may not."""
    module = registry.family(name)
    kinds = [t for t, home in registry.FAMILIES.items() if home == name and t in CONFIG_MAPPING]
    known = [config for size, config in module.SIZES.items() if size != "tiny"]
    known += [read(kind, written(kind)) for kind in kinds]
    for f in dataclasses.fields(module.Config):
        if f.name in module.Config.__annotations__ and f.metadata.get("required"):
            assert f.default in [getattr(config, f.name) for config in known], f.name
