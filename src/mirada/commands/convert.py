"""mirada convert: from one kind of file to another."""

from .common import load, model_argument

HELP = "write a model as GGUF, or as a folder of safetensors"


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("out", metavar="OUT", help="a .gguf file, or a new folder")
    parser.add_argument("--type", metavar="TYPE",
                        help="of a .gguf's matrices: F32, F16, BF16, Q8_0, Q4_0, Q4_K ... "
                        "(default: what they are)")


def run(args) -> None:
    import json

    from mirada import registry
    path = registry.save(load(args), args.out, type=args.type)
    print(json.dumps({"path": str(path)}) if args.json else path)
