"""The child that tries an unknown regex or pipeline on texts made to make it run for ever.

Run by its path, never imported: the description comes on stdin, exit status 0 means that every
text was done. The parent sets the time limit.
"""

import json
import resource
import sys

sys.path += sys.argv[1:]

from tokenizers import Tokenizer  # noqa: E402

MEMORY = 512 << 20
ALPHABETS = ("a", "1", " ", "\n", ".", "'", "é", "日", "aA", "a1", "a ", "1,", "-_", "\r\n", "\t ")


def main():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    spec = json.load(sys.stdin)
    spec["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    for length in (41, 4_000):
        for letters in ALPHABETS:
            run = letters * (length // len(letters))
            for text in (run, run + "!", run + "\x00", "!" + run + "é"):
                tokenizer.encode(text)


if __name__ == "__main__":
    main()
