"""What a config file leaves out has the value that the reference gives it."""

import dataclasses
import json

import pytest
from transformers import CONFIG_MAPPING, GenerationConfig

import mirada
from mirada import registry
from mirada.core.attention import Attention
from mirada.core.position import Rotary
from mirada.weights.config import INERT

OURS = {"gpt3", "palm"}  # their weights were never published: no reference reads such files
NEEDED = {"esm": {"pad_token_id": 1, "vocab_size": 33}}  # the reference's own None cannot be run
TYPES = sorted(set(registry.FAMILIES) - OURS)


def read(kind: str, raw: dict):
    return registry._config(registry.family(registry.FAMILIES[kind]), raw, "config.json", ())[0]


def written(kind: str) -> dict:
    """All keys of the reference's own config, nothing left out."""
    return json.loads(CONFIG_MAPPING[kind](**NEEDED.get(kind, {})).to_json_string(use_diff=False))


def form(kind: str, config) -> list:
    """What a builder makes of a config: modules, shapes, masks, angles."""
    fam = registry.family(registry.FAMILIES[kind])
    model = registry.assemble(fam, config, registry._architecture(fam, {"model_type": kind}))
    parts = [(m.mask, m.scale, m.cap) for m in model.modules() if isinstance(m, Attention)]
    turns = [(m.base, m.dim, m.scaling) for m in model.modules() if isinstance(m, Rotary)]
    shapes = [(name, p.shape) for name, p in model.named_parameters()]
    return [repr(model), repr(parts), repr(turns), shapes]


@pytest.mark.parametrize("kind", TYPES)
def test_what_a_file_leaves_out_is_the_references_default(kind):
    """A file of the required keys alone, against one that says everything."""
    raw = written(kind)
    fam = registry.family(registry.FAMILIES[kind])
    required = {f.metadata["file"] for f in dataclasses.fields(fam.Config)
                if f.metadata.get("required")}
    least = {name: value for name, value in raw.items()
             if name in required | NEEDED.get(kind, {}).keys() | {"model_type"}}
    told, untold = read(kind, raw), read(kind, least)
    apart = {f.name for f in dataclasses.fields(told)
             if getattr(told, f.name) != getattr(untold, f.name)}
    derived = {n for n in apart if getattr(untold, n) is None and n not in ("pad", "eos", "start")}
    if kind in ("qwen2", "qwen3"):
        derived |= {"window"}  # which no layer looks through
    assert apart <= derived, {n: (getattr(told, n), getattr(untold, n)) for n in apart - derived}
    if apart:
        assert form(kind, told) == form(kind, untold)


@pytest.mark.parametrize("kind", TYPES)
def test_generations_options_in_a_config_change_no_module(kind):
    """Older files keep them there; the reference moves each to the generation config."""
    raw = written(kind)
    options = {k: v for k, v in GenerationConfig().to_dict().items()
               if k not in raw and not k.endswith("token_id")}
    assert len(options) > 40 and options.keys() - INERT.keys() == {"_from_model_config"}
    assert read(kind, raw | dict.fromkeys(options, 7)) == read(kind, raw)


@pytest.mark.parametrize("kind", sorted(OURS))
def test_every_type_has_a_reference_or_a_reason(kind):
    assert kind not in CONFIG_MAPPING


def test_three_labels_where_the_reference_has_three():
    """BART's classifier; others have two, and what is saved says how many."""
    assert read("bart", written("bart")).labels == 3
    model = mirada.build("bart:tiny", architecture="BartForSequenceClassification", labels=2,
                         device="meta")
    assert len(registry.written_config(model)["id2label"]) == 2
    assert read("bart", registry.written_config(model)).labels == 2
