"""mirada tokenizer: make one, and see what one does."""

import argparse
import sys

from .common import show

HELP = "train a tokenizer; show how one cuts a text"


def fill(parser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, run, words: str):
        command = actions.add_parser(name, help=words, description=words)
        for flag in ("--json", "--debug"):  # so that they may stand at the end too
            command.add_argument(flag, action="store_true", default=argparse.SUPPRESS,
                                 help=argparse.SUPPRESS)
        command.set_defaults(action=run)
        return command

    train = action("train", _train, "make a tokenizer from text files")
    train.add_argument("files", metavar="FILES", nargs="+", help="UTF-8 text files")
    train.add_argument("--kind", required=True, choices=("bpe", "wordpiece", "unigram"))
    train.add_argument("--size", required=True, type=int, metavar="N", help="tokens at most")
    train.add_argument("-o", "--out", required=True, metavar="FOLDER", help="where it is written")
    train.add_argument("--special", action="append", default=[], metavar="TOKEN",
                       help="one more special token (again for more)")
    train.add_argument("--lowercase", action="store_true", help="wordpiece: no case, no accents")
    encode = action("encode", _encode, "the tokens of a text: id, token, place in the text")
    encode.add_argument("model", metavar="MODEL", help="a folder, a file or a short name")
    encode.add_argument("text", metavar="TEXT", help="the text; - reads it from stdin")
    encode.add_argument("--pair", metavar="TEXT", help="a second text, joined as the model has it")
    encode.add_argument("--no-special", action="store_true", help="the text's own tokens only")
    decode = action("decode", _decode, "the text of ids")
    decode.add_argument("model", metavar="MODEL", help="a folder, a file or a short name")
    decode.add_argument("ids", metavar="ID", nargs="+", type=int)
    decode.add_argument("--keep-special", action="store_true", help="write special tokens too")


def run(args) -> None:
    args.action(args)


def _train(args) -> None:
    from mirada.text.train import train
    show(args, train(args.files, args.kind, args.size, args.out, special=args.special,
                     lowercase=args.lowercase))


def _tokenizer(name: str):
    from mirada import shelf
    from mirada.registry import locate
    from mirada.text import Tokenizer
    path = shelf.unsaid(name)[1] or locate(name)
    return Tokenizer.from_file(path) if path.is_file() else Tokenizer.from_folder(path)


def _encode(args) -> None:
    from mirada.text.table import Table
    text = sys.stdin.read() if args.text == "-" else args.text
    tokenizer = _tokenizer(args.model)
    found = tokenizer.encode(text, args.pair, special=not args.no_special)
    show(args, Table(tokenizer, found, (text, args.pair)))


def _decode(args) -> None:
    from mirada.text.table import Text
    tokenizer = _tokenizer(args.model)
    show(args, Text(tokenizer, args.ids, skip_special=not args.keep_special))
