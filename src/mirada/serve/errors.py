"""What the server answers when it does not do what it was asked."""

from mirada.errors import MiradaError


class Refused(MiradaError):
    """A call that is not answered: an HTTP status, a type of the schema, a sentence, an advice."""

    def __init__(self, status: int, kind: str, message: str, **more: str):
        self.status, self.kind, self.more = status, kind, more
        super().__init__(message)

    def data(self) -> dict:
        """The body of the answer."""
        return {"error": {"type": self.kind, "message": str(self), **self.more}}


def missing(what: str) -> Refused:
    """404: there is no such thing."""
    return Refused(404, "missing", what)
