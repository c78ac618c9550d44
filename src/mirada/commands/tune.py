"""mirada tune: from a model and a file of examples to a model that does a task."""

from .common import show

HELP = "tune a model on a file of examples: labels, tags, answers, likeness, chat"


def fill(parser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--task", required=True, metavar="TASK", help="classify (or sentiment), "
                        "score (numbers), ner (words), qa (a span of a passage), similarity, chat")
    parser.add_argument("--data", required=True, metavar="FILE", help="a .csv, .tsv or .jsonl")
    parser.add_argument("--text", metavar="COLUMN", help="default: text; ner: tokens; qa: "
                        "question; chat: prompt")
    parser.add_argument("--pair", metavar="COLUMN", help="a second text; qa: context")
    parser.add_argument("--label", metavar="COLUMN", help="default: label; ner: tags; qa: "
                        "answers; chat: answer")
    parser.add_argument("--delimiter", metavar="CHAR", help="between columns, if not a comma")
    parser.add_argument("--test", metavar="FILE", help="rows that are measured at the end only")
    parser.add_argument("--epochs", type=int, metavar="N", help="at most; it ends before that when "
                        "it gets no better")
    parser.add_argument("--batch", type=int, default=16, metavar="N")
    parser.add_argument("--parts", type=int, default=1, metavar="N",
                        help="read the batch in so many parts, for less memory")
    parser.add_argument("--dtype", choices=("auto", "float32", "float64", "bfloat16"),
                        default="auto", help="what is multiplied in; default: bfloat16 where that "
                        "is faster")
    parser.add_argument("--rate", type=float, metavar="FLOAT", help="the highest learning rate; "
                        "default: 5e-5, more of narrow models")
    parser.add_argument("--lora", dest="train", action="store_const", const="lora", default="all",
                        help="train adapters of low rank only, and merge them at the end")
    parser.add_argument("--freeze", dest="train", action="store_const", const="head",
                        help="train the head only")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="a new folder, which "
                        "transformers loads too; an interrupted run goes on by the same command")
    parser.add_argument("--hub", action="store_true", help="allow MODEL to be fetched by hub id")


def run(args) -> None:
    from mirada import registry
    from mirada.tasks.tune import tune
    model = registry.locate(args.model, hub=True) if args.hub else args.model
    show(args, tune(
        model, args.task, args.data, args.out, text=args.text, pair=args.pair, label=args.label,
        delimiter=args.delimiter, test=args.test, epochs=args.epochs, batch=args.batch,
        rate=args.rate, train=args.train, seed=args.seed,
        parts=args.parts, dtype=args.dtype))
