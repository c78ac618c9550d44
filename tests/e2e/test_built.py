"""The built page as it is shipped: small, whole, and asking nothing of anyone."""

import gzip
import re

from mirada.serve.explorer import STATIC

from .words import words


def test_the_page_is_small_and_asks_nothing_outside():
    files = {f.name: f.read_bytes() for f in STATIC.iterdir()}
    code = [data for name, data in files.items() if name.endswith((".js", ".css"))]
    assert len(code) == 2 and sum(len(gzip.compress(data, 9)) for data in code) <= 120 * 1024
    assert sum(map(len, files.values())) <= 500 * 1024
    assert not any(b"sourceMappingURL" in data for data in code)
    page = files["index.html"].decode()
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) <= files.keys()
    namespaces = {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg",
                  "http://www.w3.org/1998/Math/MathML", "http://www.w3.org/1999/xlink"}
    for data in files.values():
        assert set(re.findall(r"https?://[\w./-]+", data.decode())) <= namespaces


def test_every_word_stands_in_both_languages():
    en, es = words("en"), words("es")
    assert en.keys() == es.keys() and len(en) > 200
    fields = re.compile(r"\{\w+\}")
    assert {k for k in en if set(fields.findall(en[k])) != set(fields.findall(es[k]))} == set()
