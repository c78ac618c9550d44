"""The child that renders chat templates: one JSON request a line in, one JSON answer a line out.

Run by its path, never imported. It knows jinja2 and no model, file or key; each request has one
second of processor time, and the whole process 256 MiB beyond what it needs when idle.
"""

import json
import resource
import signal
import sys

sys.path += sys.argv[1:]

from datetime import datetime  # noqa: E402

from jinja2 import TemplateError, nodes  # noqa: E402
from jinja2.exceptions import SecurityError  # noqa: E402
from jinja2.ext import Extension  # noqa: E402
from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: E402

CPU_SECONDS = 1.0
MEMORY = 256 << 20


class Refused(TemplateError):
    """The template itself refuses the messages, by raise_exception."""


class Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it only groups."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def raise_exception(message):
    raise Refused(str(message))


def strftime_now(pattern):
    return datetime.now().strftime(pattern)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON as it is: jinja2's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
        sort_keys=sort_keys,
    )


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return env


def render(env, templates, request):
    source = request["source"]
    if source not in templates:
        templates.clear()
        templates[source] = env.from_string(source)
    pieces, size = [], 0
    for piece in templates[source].generate(request["variables"]):
        size += len(piece)
        if size > request["limit"]:
            return {"breach": f"writes more than {request['limit']:,} characters"}
        pieces.append(piece)
    return {"text": "".join(pieces)}


def answer(env, templates, line):
    try:
        return render(env, templates, json.loads(line))
    except Refused as error:
        return {"refused": str(error)[:1000]}
    except SecurityError as error:
        return {"breach": f"does what a template may not: {str(error)[:300]}"}
    except MemoryError:
        return {"breach": f"needs more than {MEMORY >> 20} MiB"}
    except RecursionError:
        return {"breach": "nests too deeply"}
    except Exception as error:  # whatever a stranger's template can raise is told, not raised
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def confine():
    """No core file, no file written, and a bound on memory where the system tells our size."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return  # macOS ignores RLIMIT_AS: there time and output alone are bounded
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    env, templates = environment(), {}
    env.from_string("{{ x | tojson }}{% for y in x %}{% break %}{% endfor %}").render(x=[1])
    strftime_now("%Y")
    confine()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # ends in SIGPROF, which kills
        reply = json.dumps(answer(env, templates, line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
