"""Every error a user can cause: one clear sentence saying what is wrong, where, and what to do."""


class MiradaError(Exception):
    """Base of all errors a user can cause. Its text is shown as it is; the command line exits 2."""

    exit_code = 2


class UntrustedInputError(MiradaError):
    """A file from outside breaks a rule or a limit.

    path: the file; field: the place in it; limit: what was expected there.
    """

    def __init__(self, path, field: str, limit: str):
        self.path, self.field, self.limit = str(path), str(field), str(limit)
        super().__init__(f"{_printable(self.path)}: {_printable(self.field)}: {_printable(limit)}")


class WorkFailed(MiradaError):
    """The input was good, the work failed (a check did not pass, the disk is full). Exit code 1."""

    exit_code = 1


def _printable(text: str, limit: int = 300) -> str:
    """Escape control and direction characters, so that a name from a file cannot forge a log."""
    text = str(text)
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
