"""Configs of files and ours, read both ways: a key we do not know raises, it is never skipped.

A family's Config is a frozen dataclass whose fields are made by `key(name in the file, default)`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing

from mirada.errors import MiradaError, UntrustedInputError

ANY = object()  # an inert key may hold anything

# Keys of every config that change no number here: labels and task texts, dropout and other rates of
# training, token ids, output switches, generation's defaults, where the file came from.
INERT = {name: ANY for name in """
architectures model_type transformers_version torch_dtype dtype id2label label2id num_labels
problem_type bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id
unk_token_id decoder_start_token_id return_dict return_dict_in_generate output_hidden_states
output_attentions output_scores use_cache use_return_dict torchscript task_specific_params
finetuning_task tokenizer_class prefix license name_or_path language gradient_checkpointing
initializer_range initializer_factor max_length min_length do_sample early_stopping num_beams
num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
exponential_decay_length_penalty suppress_tokens begin_suppress_tokens max_new_tokens
min_new_tokens max_time stop_strings min_p top_h epsilon_cutoff eta_cutoff penalty_alpha
renormalize_logits encoder_repetition_penalty sequence_bias token_healing guidance_scale
force_words_ids constraints dola_layers low_memory watermarking_config output_logits
prompt_lookup_num_tokens max_matching_ngram_size prefill_chunk_size max_cache_len is_assistant
cache_implementation cache_config compile_config disable_compile continuous_batching_config
num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight
speculation_type use_mtp
""".split()} | {"pruned_heads": {}, "use_bfloat16": False, "tf_legacy_loss": False,
                "is_encoder_decoder": False, "is_decoder": False, "add_cross_attention": False,
                "cross_attention_hidden_size": None, "tie_encoder_decoder": False,
                "chunk_size_feed_forward": ANY}  # chunking the MLP changes memory, not numbers
EXECUTABLE = ("auto_map", "custom_pipelines", "trust_remote_code", "quantization_config")  # and _*
LIMIT = 1 << 24  # no size in a config is larger


def key(name: str, default, *, low=None, high=LIMIT, choices=None, required=False):
    """A field read from `name` in a file. low, high: bounds of a number; required: the file must
    say it (a file that leaves it out means something else than our default)."""
    meta = {"file": name, "low": low, "high": high, "choices": choices, "required": required}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: default, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def size(name: str, default: int, *, high: int = LIMIT):
    """A count that builds something: required in files, at least 1."""
    return key(name, default, low=1, high=high, required=True)


def nested(name: str, cls, inert: dict | None = None):
    """A field that is another family's config: an object in the file, which may leave out any of
    its keys. inert: that family's."""
    return dataclasses.field(default_factory=cls, metadata={
        "file": name, "low": None, "high": LIMIT, "choices": None, "required": False,
        "nested": inert or {}})


@dataclasses.dataclass(frozen=True)
class Reading:
    """A config that was read: ours, the file's own text, and what of it was not acted on."""

    config: typing.Any
    raw: dict
    ignored: dict[str, str]  # key -> why


def read(cls, raw: dict, path, *, inert: dict | None = None, ignore=(), inside="") -> Reading:
    """Fill `cls` from a file's keys. Raises with name, value and the way past for unknown ones.

    inside: of a config within another, what its keys' names begin with; none of them is required.
    """
    inert = INERT | (inert or {})
    known = _prepared(cls, raw, path)
    hints, values, ignored = _hints(cls), {}, {}
    fields = {inside + f.metadata["file"]: f for f in dataclasses.fields(cls)
              if "file" in f.metadata}
    for key, value in known.items():
        name = inside + key
        if name in fields and name not in ignore:
            f = fields[name]
            if "nested" in f.metadata:
                own = _within(hints[f.name], value, path, f.metadata["nested"], ignore, name)
                values[f.name], ignored = own.config, ignored | own.ignored
            else:
                values[f.name] = _checked(value, hints[f.name], f.metadata, path, name)
        elif name in ignore:
            ignored[name] = "left out as asked"
        elif not passed_on(key):
            ignored[name] = "never acted on"
        elif key not in inert:
            raise _unknown(name, value, path)
        elif inert[key] is not ANY and value not in (inert[key], None):
            raise UntrustedInputError(path, name, f"{value!r} asks for something that this family "
                                      f"does not have here; only {inert[key]!r} can be loaded")
    for name, f in fields.items():
        needed = f.metadata["required"] and not inside
        if needed and known.get(name) is None and f.name not in values:
            raise UntrustedInputError(path, name, "is missing, and the model cannot be built "
                                      "without it")
    try:
        return Reading(cls(**values), dict(raw), ignored)
    except MiradaError as error:  # its fields do not fit together
        raise UntrustedInputError(path, "config", str(error)) from None


def _within(cls, raw, path, inert: dict, ignore, name: str) -> Reading:
    """What an object inside a config says; null says nothing."""
    if not isinstance(raw, dict | None):
        raise UntrustedInputError(path, name, f"{raw!r} is not an object")
    return read(cls, raw or {}, path, inert=inert, ignore=ignore, inside=f"{name}.")


def _prepared(cls, raw: dict, path) -> dict:
    """raw as the family wants it; a family's `prepare` need not guard against wrong types."""
    if not hasattr(cls, "prepare"):
        return raw
    try:
        return cls.prepare(dict(raw))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UntrustedInputError(path, "config", "a key does not hold what this architecture "
                                  f"keeps there ({error})") from None


def write(config, raw: dict | None = None) -> dict:
    """The file's form of a config: its own keys first, then those that came with the file."""
    ours = {f.metadata["file"]: getattr(config, f.name) for f in dataclasses.fields(config)
            if "file" in f.metadata}
    ours = {k: list(v) if isinstance(v, tuple) else v for k, v in ours.items()}
    ours |= {k: write(v, (raw or {}).get(k)) for k, v in ours.items()
             if dataclasses.is_dataclass(v)}
    ours = config.restore(ours) if hasattr(config, "restore") else ours
    kept = {k: v for k, v in (raw or {}).items() if passed_on(k) and k not in ours}
    return kept | ours


def changed(config, changes: dict, where: str):
    """config with other fields; of a config inside it an object of those: text={"layers": 3}."""
    known = {f.name: f for f in dataclasses.fields(config)}
    made = dict(changes)
    for name, value in changes.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise MiradaError(f"{where} has no field called {name!r}" + (
                f"; did you mean {near[0]!r}?" if near else f" among: {list(known)}"))
        if "nested" in known[name].metadata and isinstance(value, dict):
            made[name] = changed(getattr(config, name), value, f"{where}'s {name}")
        elif "nested" in known[name].metadata:
            _checked(value, _hints(config.__class__)[name], known[name].metadata, where, name)
    return dataclasses.replace(config, **made)


def check(config, where: str) -> None:
    """Raise MiradaError where a field of a Config holds what no file could say."""
    hints = _hints(config.__class__)
    for f in dataclasses.fields(config):
        if "file" in f.metadata:
            _checked(getattr(config, f.name), hints[f.name], f.metadata, where, f.name)
        if "nested" in f.metadata:
            check(getattr(config, f.name), where)


def passed_on(name: str) -> bool:
    """False for keys that make other programs run something: never acted on, never written."""
    return name not in EXECUTABLE and not name.startswith("_")


@functools.cache
def _hints(cls) -> dict:
    return typing.get_type_hints(cls)


def _unknown(name: str, value, path) -> MiradaError:
    shown = repr(value)
    shown = shown if len(shown) < 60 else shown[:57] + "..."
    return UntrustedInputError(
        path, name, f"this key (value {shown}) is not known for this architecture, and a model "
        f"built without it could be silently wrong; if it changes no number, load with "
        f"ignore=[{name!r}] (--ignore {name})")


def _checked(value, hint, meta, path, name: str):
    """value if it is what the field takes, else a clear error. bool is not an int here."""
    if not _is(value, hint):
        raise UntrustedInputError(path, name, f"{value!r} is not {_named(hint)}")
    if isinstance(value, list):
        value = tuple(value)
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, bool) or not isinstance(part, (int, float)):
            continue
        if not abs(part) <= meta["high"]:  # so written, NaN is refused too
            raise UntrustedInputError(path, name, f"{part!r} is out of range (at most "
                                      f"{meta['high']})")
        if meta["low"] is not None and part < meta["low"]:
            raise UntrustedInputError(path, name, f"{part!r} is too small (at least {meta['low']})")
    if meta["choices"] is not None and value is not None and value not in meta["choices"]:
        shown = ", ".join(sorted(map(str, meta["choices"])))
        raise UntrustedInputError(path, name, f"{value!r} is not one of {shown}")
    return float(value) if hint is float else value


def _is(value, hint) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, h) for h in typing.get_args(hint))
    if origin is tuple:
        inner = [h for h in typing.get_args(hint) if h is not Ellipsis]
        exact = Ellipsis not in typing.get_args(hint)
        if not isinstance(value, (list, tuple)) or (exact and len(value) != len(inner)):
            return False
        return all(_is(v, inner[n if exact else 0]) for n, v in enumerate(value))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is typing.Any or isinstance(value, origin or hint)


def _named(hint) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text",
             dict: "an object", types.NoneType: "null"}
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_named(h) for h in typing.get_args(hint))
    return names.get(hint) or names.get(origin) or "a list of the right length and kind"
