"""A view: one page that needs nothing else, an iframe in a notebook, a picture, numbers.

All that a page shows travels as one deflated, base64 block, so that no token or name ever stands in
its HTML; the page's own rule (CSP) lets only its own script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from mirada.errors import MiradaError
from mirada.look import draw
from mirada.look.views.words import WORDS

MOST = 20 << 20  # bytes of a page; browsers open larger ones slowly, notebooks grow by each
SMALLER = ("take fewer layers (include_layers=[...]) or a shorter text, or open it in the "
           "Explorer: mirada explore MODEL")
HERE = Path(__file__).parent / "page"


class View(draw.Drawn):
    """What can be looked at as a page and as a picture, and read as numbers.

    Each kind says what its page is given in contents(), what the page's script is called in kind,
    and draws figure(). One that was made in a language has it as lang.
    """

    kind = ""
    tall = 620  # pixels of its place in a notebook

    def contents(self, lang: str) -> tuple[str, dict, Iterable[bytes]]:
        """(title, what the script reads as JSON, bytes that go with it)."""
        raise NotImplementedError(f"{type(self).__name__} has no page")

    def html(self, lang: str | None = None) -> str:
        """The page, in en or es. Raises MiradaError where it would be larger than MOST."""
        lang = spoken(lang or getattr(self, "lang", "en"))
        return page(self.kind, *self.contents(lang), lang)

    def _repr_html_(self) -> str:
        """The page as a notebook shows it: in an iframe of its own that reaches nothing outside."""
        return (f'<iframe sandbox="allow-scripts allow-downloads" title="mirada: {self.kind}" '
                f'style="width:100%;height:{self.tall}px;border:0" '
                f'srcdoc="{html.escape(self.html())}"></iframe>')

    def save_html(self, path, lang: str | None = None) -> str:
        """Write the page; the path it has."""
        made = self.html(lang)
        return draw.written(draw.place(path, (".html",)),
                            lambda aside: Path(aside).write_text(made, encoding="utf-8"))

    def to_svg(self, path=None) -> str:
        """The figure as SVG text; into `path` where one is given, which is then the answer."""
        return self._picture("svg", path) if path else self._picture("svg").decode()

    def to_png(self, path=None):
        """The figure as PNG bytes; into `path` where one is given, which is then the answer."""
        return self._picture("png", path)

    def save(self, path) -> str:
        """Write it as what the path's ending says: .html, or a picture's .png, .svg, .pdf."""
        if str(path).endswith(".html"):
            return self.save_html(path)
        return draw.save(self.figure(), draw.place(path, (*draw.PICTURES, ".html")))

    def _picture(self, form: str, path=None):
        if path is not None:
            return draw.save(self.figure(), draw.place(path, (f".{form}",)))
        out = io.BytesIO()
        self.figure().savefig(out, format=form, dpi=110)
        return out.getvalue()


def page(kind: str, title: str, about: dict, blobs: Iterable[bytes], lang: str) -> str:
    """One HTML file: a script, a style and the data, each once."""
    script, style = _source("common.js") + _source(f"{kind}.js"), _source("style.css")
    about |= {"title": title, "words": WORDS[lang], "lang": lang}
    rule = (f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'")
    return (f'<!doctype html><html lang="{lang}"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{rule}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>{style}</style></head><body>"
            f'<script type="application/base64" id="data">{block(about, blobs)}</script>'
            f"<script>{script}</script></body></html>")


def spoken(lang: str) -> str:
    """A language that the views have words in. Raises MiradaError."""
    if lang not in WORDS:
        raise MiradaError(f"views speak {', '.join(WORDS)}, not {lang!r}")
    return lang


def block(about: dict, blobs: Iterable[bytes]) -> str:
    """base64 of deflate of: the blobs, `about` as JSON, the JSON's length (u32). It comes last, so
    that making the blobs may still add to it. Raises MiradaError past MOST."""
    press, packed = zlib.compressobj(6), bytearray()
    for blob in blobs:
        packed += press.compress(blob)
        if len(packed) > MOST // 4 * 3:
            raise MiradaError(f"this page would have more than {MOST >> 20} MB: {SMALLER}")
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":"))
    head = text.encode("utf-8", "replace")  # a lone surrogate is no text
    packed += press.compress(head + len(head).to_bytes(4, "little")) + press.flush()
    if len(packed) > MOST // 4 * 3:
        raise MiradaError(f"this page would have more than {MOST >> 20} MB: {SMALLER}")
    return base64.b64encode(packed).decode()


@cache
def _source(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
