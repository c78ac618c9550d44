"""mirada eval: how good a model's answers to a file of examples are."""

from .common import load, model_argument, show

HELP = "measure a model on a file of examples: accuracy, F1, BLEU, ROUGE, perplexity ..."


def fill(parser) -> None:
    parser.add_argument("task", metavar="TASK", help="text-classification, ner, "
                        "question-answering, translation, summarization, multiple-choice, "
                        "perplexity ...")
    model_argument(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="a .csv, .tsv or .jsonl of "
                        "examples with their references; for perplexity also a .txt")
    parser.add_argument("--column", action="append", default=[], metavar="FIELD=NAME",
                        help="where a field has another name in the file (again for more)")
    parser.add_argument("--delimiter", metavar="CHAR", help="between columns, if not a comma")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N rows only")
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="multiple-choice: the "
                        "first N rows are answered examples in each prompt")
    parser.add_argument("--template", metavar="TEXT", help="multiple-choice: the prompt, with "
                        "{field}s of a row")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("-o", "--option", action="append", default=[], metavar="NAME=VALUE",
                        help="an option of the task (again for more)")


def run(args) -> None:
    from mirada.tasks import command, evaluate
    options = dict(map(command.option, args.option))
    show(args, evaluate.evaluate(
        args.task, load(args), args.data, columns=args.column, delimiter=args.delimiter,
        limit=args.limit, shots=args.shots, template=args.template, batch_size=args.batch_size,
        **options))
