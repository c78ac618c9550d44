"""A mirada model for lm-eval: what its model interface asks for, by its definitions (0.4).

lm-eval itself is imported only by `adapter` and `register`; Scorer is what they wrap. Tests hold
Scorer to requests of the form that lm-eval makes, because its own dependencies are many.
"""

from __future__ import annotations

from typing import Any

from mirada.errors import MiradaError
from mirada.generate import stop, window
from mirada.generate.text import needed, text_stream
from mirada.model import Model

from . import score

LONGEST = 2048  # tokens at a time, where the model has no longest context
WRITTEN = 256  # tokens of an answer, unless a task says


class Scorer:
    """loglikelihood, loglikelihood_rolling and generate_until of a model. Requests have `args`.

    As in lm-eval, a prompt too long loses its oldest tokens, here with a warning.
    """

    def __init__(self, model: Model, batch_size: int = 8):
        super().__init__()
        needed(model)
        self.model, self.batch_size = model, int(batch_size)

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """args (context, continuation) -> (its log-probability in nats, whether it is greedy)."""
        pairs = [score.fitting(self.model, *score.encoded(self.model, *request.args))
                 for request in requests]
        found = score.continuations(self.model, pairs, self.batch_size)
        return [(sum(each), greedy) for each, greedy in found]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """args (text,) -> its log-probability in nats behind the first token, in windows as long
        as the context, each token scored once."""
        most, found = self.model.context or LONGEST, []
        for (text,) in (request.args for request in requests):
            ids = [self.prefix, *self.model.tokenizer.encode(text, special=False).ids]
            pairs = [(ids[max(0, q - 1 - most) : p], ids[p:q])
                     for p, q in score.spans(len(ids), most, most)]
            each = (score.continuations(self.model, [pair])[0][0] for pair in pairs)
            found.append(float(sum(map(sum, each))))
        return found

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """args (context, options) -> the answer before the first of options["until"]."""
        return [self._answer(*request.args) for request in requests]

    def _answer(self, context: str, asked: dict) -> str:
        asked = dict(asked)
        until = asked.pop("until", None) or []
        until = tuple([until] if isinstance(until, str) else until)
        room = int(asked.pop("max_gen_toks", asked.pop("max_new_tokens", WRITTEN)))
        ids = self.model.tokenizer.encode(context).ids or [self.prefix]
        if not self.model.encoder_decoder:
            ids = window.fit(ids, self.model.context, room, "left").ids
        sampled = asked.get("do_sample", bool(asked.get("temperature")))
        known = {name: asked[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed")
                 if sampled and asked.get(name) is not None} or {"temperature": 0}
        answer = text_stream(self.model, ids, max_new_tokens=room, stop=until, **known)
        text = "".join(answer)
        before = stop.cut(text, until)
        return text if before is None else before

    @property
    def prefix(self) -> int:
        """The token before a text that has nothing before it."""
        tokenizer = self.model.tokenizer
        ids = (tokenizer.bos_id, *sorted(tokenizer.eos_ids))
        first = next((i for i in ids if i is not None), None)
        if first is None:
            raise MiradaError("this tokenizer has no token for the beginning or end of a text, "
                              "which lm-eval's definitions need")
        return first

    @property
    def tokenizer_name(self) -> str:
        return str(self.model.tokenizer.path)

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True
                            ) -> str:
        return self.model.tokenizer.render(chat_history,
                                           add_generation_prompt=add_generation_prompt)


def adapter(model: Model, batch_size: int = 8):
    """An lm_eval.api.model.LM of a model, for lm_eval.simple_evaluate(model=adapter(model), ...).
    Raises MiradaError where lm-eval is not installed."""
    return _class()(model, batch_size)


def register() -> None:
    """Make `mirada` a model name of lm-eval's: model="mirada", model_args="pretrained=DIR"."""
    made = _class()

    def create_from_arg_string(cls, text: str, more: dict | None = None):
        named = dict(one.split("=", 1) for one in text.split(",") if one)
        return create_from_arg_obj(cls, named, more)

    def create_from_arg_obj(cls, named: dict, more: dict | None = None):
        from mirada import registry
        size = (more or {}).get("batch_size") or named.get("batch_size") or 8
        return cls(registry.load(named["pretrained"]), size)

    made.create_from_arg_string = classmethod(create_from_arg_string)
    made.create_from_arg_obj = classmethod(create_from_arg_obj)
    from lm_eval.api.registry import register_model
    register_model("mirada")(made)


def _class() -> Any:
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise MiradaError("lm-eval is not installed: pip install lm-eval") from None
    return type("MiradaLM", (Scorer, LM), {"__doc__": Scorer.__doc__})
