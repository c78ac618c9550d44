"""The child that tries an unknown regex or pipeline on texts made to make it run for ever.

Run by its path, never imported: the description comes on stdin, exit status 0 means that every
text was done within the processor time it is given.
"""

import json
import resource
import signal
import string
import sys

sys.path += sys.argv[1:]

from tokenizers import Tokenizer  # noqa: E402

CPU_SECONDS = 2.0
MEMORY = 512 << 20
TAIL = string.punctuation + "a1Aé日 \n\t"  # a matcher gives up where a letter it needs is absent
ALPHABETS = ("a", "1", " ", "\n", ".", "'", "é", "日", "aA", "a1", "a ", "1,", "-_", "\r\n", "\t ")


def main():
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # ends in SIGPROF, which kills
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    spec = json.load(sys.stdin)
    own = sorted(set(json.dumps(spec, ensure_ascii=False)) - set(string.punctuation))[:64]
    spec["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    for length in (41, 4_000):
        for letters in (*ALPHABETS, *own):
            run = letters * (length // len(letters))
            for text in (run, run + "!", run + "\x00" + TAIL, "!" + run + "é" + TAIL):
                tokenizer.encode(text)


if __name__ == "__main__":
    main()
