"""mirada task: any task by its name, on words or on a whole file."""

import argparse

from .common import load, model_argument

HELP = "classify, tag, answer, translate, summarize ... by a task's name"


def fill(parser) -> None:
    parser.add_argument("name", metavar="NAME", help="fill-mask, ner, translation ...")
    model_argument(parser)
    words = parser.add_argument(
        "input", metavar="INPUT", nargs="+", default=[], help="a text, or several; - reads one "
        "from stdin. question-answering: the question, then the passage. Of tasks on pictures: "
        "their paths. None with --in")

    class Source(argparse.Action):  # with a file, words are not asked for
        def __call__(self, parser, namespace, value, option=None):
            namespace.source, words.required = value, False

    parser.add_argument("--in", dest="source", action=Source, metavar="FILE",
                        help="answer each record of a .txt (a line each), .csv, .tsv or .jsonl")
    parser.add_argument("--out", metavar="FILE", help="the .jsonl to write with --in; the same "
                        "command goes on with an interrupted one")
    parser.add_argument("--column", action="append", default=[], metavar="[FIELD=]NAME",
                        help="the column or key to read (again for a task that reads several)")
    parser.add_argument("--delimiter", metavar="CHAR", help="between columns, if not a comma")
    parser.add_argument("--long", choices=("stride", "truncate", "refuse"),
                        help="what becomes of a text longer than the model reads")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("-o", "--option", action="append", default=[], metavar="NAME=VALUE",
                        help="an option of the task, as top_k=3 (again for more)")


def run(args) -> None:
    from mirada.tasks import command
    options = args.option + ([f"long={args.long}"] if args.long else [])
    if args.source is None and not (args.out or args.column or args.delimiter):
        return command.run(args.name, load(args), args.input, options, args.json)
    command.check(args.source, args.out, args.input)  # before a model is loaded
    command.file(args.name, load(args), args.source, args.out, args.column, options,
                 delimiter=args.delimiter, batch_size=args.batch_size, called=args.model)
