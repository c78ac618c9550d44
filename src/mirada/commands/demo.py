"""mirada demo: a real small model, one question, one picture."""

HELP = "ask a real small model a question and draw its attention"


def fill(parser) -> None:
    parser.add_argument("-o", "--out", default="attention.png", help="where the picture goes")


def run(args) -> None:
    from mirada import demo
    demo.demo(args.out)
