"""mirada convert: from one kind of file to another, an adapter put into its model."""

import sys

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

    from mirada import edit, registry
    model = load(args)
    if args.adapter is not None:
        adapted, model = model, edit.merge(model)
        print(f"merged; no output moved by more than {edit.merge_error(adapted, model):.2g}",
              file=sys.stderr)
    path = registry.save(model, args.out, type=args.type)
    print(json.dumps({"path": str(path)}) if args.json else path)
