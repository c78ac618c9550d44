"""Tiny models behind a real server, and a caller that holds every answer against the schema."""

import http.client
import json
import re
import threading
from pathlib import Path

import jsonschema
import safetensors.numpy

import mirada
from mirada.serve import schema
from mirada.serve.explorer import Explorer
from mirada.text.tokenizer import Tokenizer
from mirada.text.train import train

TEXT = "El gato bebió la leche porque tenía sed"
GUIDES = [TEXT, "La pizza acaba de salir del horno, estaba rica", "Diego eats pizza",
          "Pizza eats Diego", "El perro grande corrió rápido"]
HOSTILE = "</script><img src=x onerror=alert(1)>"
RUN, MODEL, JOB = r"r_[0-9a-f]{12}", r"m[0-9]+", r"j_[0-9a-f]{12}"


def tokenizer(folder: Path, kind: str) -> Tokenizer:
    """A tokenizer of the guides' sentences, with one token that is markup."""
    texts = folder / "texts"
    texts.write_text("\n".join(GUIDES * 5))
    train([str(texts)], kind, 330 if kind == "bpe" else 120, folder / kind, special=[HOSTILE])
    return Tokenizer.from_folder(folder / kind)


def models(folder: Path) -> dict:
    """A decoder, a masked model, an encoder-decoder and a classifier, by name."""
    pieces, words = tokenizer(folder, "bpe"), tokenizer(folder, "wordpiece")
    gpt = mirada.build("gpt2", size="tiny", seed=3, vocab=pieces.size)
    bert = mirada.build("bert", size="tiny", seed=3, vocab=words.size,
                        architecture="BertForMaskedLM")
    gpt.tokenizer, bert.tokenizer = pieces, words
    return {"gpt": gpt, "bert": bert, "t5": mirada.build("t5", size="tiny", seed=3),
            "judge": mirada.build("bert", size="tiny", seed=4,
                                  architecture="BertForSequenceClassification")}


class Caller:
    """A server in a thread, and what a page with its token says to it."""

    def __init__(self, models: dict, **options):
        self.explorer = Explorer(models, **options)
        server = self.explorer.listen()
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str):
        """(status, headers, bytes) of any call, with the token unless headers say otherwise."""
        line = http.client.HTTPConnection("127.0.0.1", self.explorer.port, timeout=20)
        given = {"Authorization": f"Bearer {self.explorer.token}", **headers}
        line.request(method, path, body, {k.replace("_", "-"): v for k, v in given.items() if v})
        answer = line.getresponse()
        content = answer.read()
        line.close()
        return answer.status, answer.headers, content

    def get(self, path: str, status: int = 200):
        """The JSON or the tensors of a GET, which fulfil the schema."""
        return self._read("GET", path, self.send("GET", f"/x/v1/{path}"), status)

    def post(self, path: str, given, status: int = 200):
        """The JSON of a POST, which fulfils the schema."""
        found = self.send("POST", f"/x/v1/{path}", json.dumps(given).encode(),
                          Content_Type="application/json")
        return self._read("POST", path, found, status)

    def run(self, text: str | list[int], status: int = 201, **more) -> dict:
        """A new run of a text or of ids."""
        model = {"model": more.pop("model")} if "model" in more else {}
        inputs = {"text" if isinstance(text, str) else "ids": text, **more}
        return self.post("runs", {**model, "inputs": inputs}, status)

    def _read(self, method: str, path: str, found, status: int):
        got, headers, content = found
        assert got == status, content[:500]
        if headers["Content-Type"] == "application/octet-stream":
            return Tensors(content)
        data = json.loads(content)
        fulfils(data, "error" if got >= 400 else answers(method, path))
        return data


class Tensors(dict):
    """Arrays by name; about: the __metadata__."""

    def __init__(self, content: bytes):
        super().__init__(safetensors.numpy.load(content))
        size = int.from_bytes(content[:8], "little")
        self.about = json.loads(content[8 : 8 + size])["__metadata__"]


def fulfils(data, name: str) -> None:
    """Raises unless data is a `name` of the schema, by a validator that is not ours."""
    rules = {"$ref": f"#/$defs/{name}", "$defs": schema.read()["$defs"]}
    jsonschema.Draft202012Validator(rules).validate(data)


def answers(method: str, path: str) -> str:
    """The definition that a route of the schema says its JSON fulfils."""
    path = path.partition("?")[0]
    words = "|".join(path.split("/"))
    for route, told in schema.read()["routes"].items():
        verb, _, address = route.partition(" ")
        pattern = re.escape(address.partition("?")[0].removeprefix("/x/v1/")).replace("/", r"\|")
        pattern = re.sub(r"\\\{[a-z]+\\\}", "[^|]+", pattern)
        if verb == method and re.fullmatch(pattern, words) and "answers" in told:
            return told["answers"]
    raise AssertionError(f"the schema has no route {method} {path}")
