"""What a model's files ask of generation where the caller does not say it.

generation_config.json speaks for all options; only where a folder has none do the keys count that
older files keep in config.json. Keys that are no option here change nothing.
"""

from __future__ import annotations

from mirada.model import Model

KEYS = """max_new_tokens max_length min_new_tokens min_length repetition_penalty
no_repeat_ngram_size num_beams num_return_sequences length_penalty early_stopping
forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens bad_words_ids
renormalize_logits""".split()
SAMPLING = "temperature top_k top_p min_p".split()
LENGTHS = ({"max_new_tokens", "max_length"}, {"min_new_tokens", "min_length"})


def source(model: Model) -> tuple[dict, str]:
    """The file that speaks for the model, and its name."""
    if model.origin.generation is not None:
        return model.origin.generation, "generation_config.json"
    return model.origin.raw, "config.json"


def defaults(model: Model, given) -> dict:
    """The options that the file sets and the caller, whose names are `given`, does not.

    Sampling keys count only where the file says do_sample: true; it then has a top_k of 50 unless
    it names another (0: none), as in the reference. Of a length in new tokens and one in all, what
    the caller says of either unsays the file's other.
    """
    file, _ = source(model)
    names = KEYS + SAMPLING if file.get("do_sample") is True else KEYS
    own = {name: file[name] for name in names if file.get(name) is not None}
    if file.get("do_sample") is True:
        own |= {"do_sample": True, "top_k": own.get("top_k", 50) or None}
    unsaid = set(given).union(*(pair for pair in LENGTHS if not pair.isdisjoint(given)))
    return {name: value for name, value in own.items() if name not in unsaid}


def token_id(model: Model, name: str):
    """An id that generation needs, by the file; config.json has it where the other does not."""
    file, _ = source(model)
    own = file.get(name)
    return model.origin.raw.get(name) if own is None else own
