"""mirada task: any task by its name."""

from .common import load, model_argument

HELP = "classify, tag, answer, translate, summarize ... by a task's name"


def fill(parser) -> None:
    parser.add_argument("name", metavar="NAME", help="fill-mask, ner, translation ...")
    model_argument(parser)
    parser.add_argument("input", metavar="INPUT", nargs="+",
                        help="a text, or several; - reads one from stdin. question-answering: "
                        "the question, then the passage")
    parser.add_argument("-o", "--option", action="append", default=[], metavar="NAME=VALUE",
                        help="an option of the task, as top_k=3 (again for more)")


def run(args) -> None:
    from mirada.tasks import command
    command.run(args.name, load(args), args.input, args.option, args.json)
