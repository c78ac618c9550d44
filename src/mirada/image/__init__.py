"""Raw pictures in, pixel values out: what a vision model reads, exactly as its files say."""


def __getattr__(name: str):
    if name == "read":
        from mirada.image.decode import read

        return read
    if name == "Processor":
        from mirada.image.processor import Processor

        return Processor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
