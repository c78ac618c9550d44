"""Text in, ids out, and back: tokenizers from every file form, chat templates, streaming."""


def __getattr__(name: str):
    if name in ("Tokenizer", "Encoding"):
        from mirada.text import tokenizer

        return getattr(tokenizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
