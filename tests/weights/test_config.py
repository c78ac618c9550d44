"""Configs: what is read is checked, what is unknown raises, what is written is what was read."""

from dataclasses import dataclass

import pytest

from mirada.errors import MiradaError, UntrustedInputError
from mirada.weights import config as configs
from mirada.weights.config import ANY, key, size


@dataclass(frozen=True)
class Config:
    d: int = size("hidden_size", 8)
    heads: int = size("num_heads", 2, high=64)
    eps: float = key("eps", 1e-5, low=0)
    act: str = key("act", "gelu", choices={"gelu", "relu"})
    gated: bool = key("gated", False)
    window: int | None = key("window", None, low=1)
    shape: int | tuple[int, int] = key("shape", 4, low=1)
    terms: tuple[str, ...] = key("terms", ())
    labels: int = 2

    def __post_init__(self):
        if self.gated and self.window:
            raise MiradaError("gated and window exclude each other")


RAW = {"hidden_size": 16, "num_heads": 4}


def read(**changes):
    raw = {k: v for k, v in (RAW | changes).items() if v is not ...}
    return configs.read(Config, raw, "config.json", inert={"rate": ANY, "mode": "plain"})


def test_values_and_defaults():
    config = read(eps=0, shape=[2, 3], terms=["a", "b"], window=None).config
    assert config == Config(16, 4, 0.0, shape=(2, 3), terms=("a", "b"))
    assert isinstance(config.eps, float)
    assert read(shape=5).config.shape == 5


@pytest.mark.parametrize("changes, said", [
    (dict(hidden_size=...), "hidden_size: is missing"),
    (dict(hidden_size=None), "hidden_size: None is not a whole number"),
    (dict(hidden_size="16"), "hidden_size: '16' is not a whole number"),
    (dict(hidden_size=16.0), "hidden_size: 16.0 is not a whole number"),
    (dict(hidden_size=True), "hidden_size: True is not a whole number"),
    (dict(hidden_size=[16]), r"hidden_size: \[16\] is not a whole number"),
    (dict(hidden_size={"a": 1}), "hidden_size: .* is not a whole number"),
    (dict(hidden_size=0), "hidden_size: 0 is too small"),
    (dict(hidden_size=-1), "hidden_size: -1 is too small"),
    (dict(hidden_size=(1 << 24) + 1), "hidden_size: 16777217 is out of range"),
    (dict(hidden_size=10**400), "hidden_size: 10+.* is out of range|hidden_size: 1000"),
    (dict(num_heads=65), "num_heads: 65 is out of range"),
    (dict(eps=float("nan")), "eps: nan is out of range"),
    (dict(eps=float("inf")), "eps: inf is out of range"),
    (dict(eps=-1e-5), "eps: -1e-05 is too small"),
    (dict(eps=None), "eps: None is not a number"),
    (dict(act="gelux"), "act: 'gelux' is not one of gelu, relu"),
    (dict(act=["gelu"]), "act: .* is not a text"),
    (dict(gated=1), "gated: 1 is not true or false"),
    (dict(window=0), "window: 0 is too small"),
    (dict(window="none"), "window: 'none' is not a whole number or null"),
    (dict(shape=[1, 2, 3]), "shape: .* is not a whole number or a list"),
    (dict(shape=[1, 0]), "shape: 0 is too small"),
    (dict(terms="ab"), "terms: 'ab' is not a list"),
    (dict(terms=[1]), "terms: .* is not a list"),
    (dict(gap_size=7), r"gap_size: .*value 7.*ignore=\['gap_size'\]"),
    (dict(mode="odd"), "mode: 'odd' asks for something.*only 'plain'"),
    (dict(gated=True, window=3), "config: gated and window exclude each other"),
])
def test_what_is_refused(changes, said):
    with pytest.raises(UntrustedInputError, match=said) as caught:
        read(**changes)
    assert caught.value.path == "config.json" and len(str(caught.value)) < 700


def test_inert_ignored_and_executable_keys():
    raw = dict(rate=0.1, mode=None, auto_map={"AutoModel": "x.Y"}, _name_or_path="somewhere",
               custom_pipelines={}, gap=1)
    reading = configs.read(Config, RAW | raw, "c", inert={"rate": ANY, "mode": "plain"},
                           ignore=["gap", "act"])
    assert reading.ignored == {"auto_map": "never acted on", "custom_pipelines": "never acted on",
                               "_name_or_path": "never acted on", "gap": "left out as asked"}


def test_what_is_written():
    raw = RAW | dict(rate=0.1, auto_map={}, _x=1, shape=[2, 3])
    config = configs.read(Config, raw, "c", inert={"rate": ANY}).config
    written = configs.write(config, raw)
    assert written == dict(hidden_size=16, num_heads=4, eps=1e-5, act="gelu", gated=False,
                           window=None, shape=[2, 3], terms=[], rate=0.1)
    assert configs.read(Config, written, "c", inert={"rate": ANY}).config == config


def test_a_familys_prepare_need_not_guard():
    class Careless(Config):
        @staticmethod
        def prepare(raw):
            return {k: v for k, v in raw.items() if k != "nested"} | {"act": raw["nested"]["act"]}

    for wrong in (None, 5, [], {}, "text"):
        with pytest.raises(UntrustedInputError, match="config: a key does not hold"):
            configs.read(Careless, RAW | {"nested": wrong}, "c")
    assert configs.read(Careless, RAW | {"nested": {"act": "relu"}}, "c").config.act == "relu"


def test_our_own_values_are_held_to_the_same():
    configs.check(Config(), "net")
    for wrong in (Config(d="8"), Config(heads=65), Config(eps=float("nan")), Config(shape=(1, 0))):
        with pytest.raises(MiradaError, match="^net: "):
            configs.check(wrong, "net")
