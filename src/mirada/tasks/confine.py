"""What stands before a program that a model wrote: little time and memory, no files, no network.

Never imported: judge.py puts this text, and a call, in front of the program. Modules that programs
may use are loaded while files can still be opened.
"""

import bisect  # noqa: F401
import collections  # noqa: F401
import copy  # noqa: F401
import datetime  # noqa: F401
import functools  # noqa: F401
import hashlib  # noqa: F401
import heapq  # noqa: F401
import itertools  # noqa: F401
import json  # noqa: F401
import math  # noqa: F401
import operator  # noqa: F401
import random  # noqa: F401
import re  # noqa: F401
import resource
import statistics  # noqa: F401
import string  # noqa: F401
import typing  # noqa: F401

MEMORY = 256 << 20
MESSAGES = 64 << 10


def confine(seconds):
    """Bounds that the program cannot lift again."""
    bounds = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0,
              resource.RLIMIT_FSIZE: MESSAGES}
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        bounds[resource.RLIMIT_AS] = now + MEMORY
    except OSError:
        pass  # macOS ignores this bound and does not tell our size
    bounds[resource.RLIMIT_NOFILE] = 3  # the three that are open: no file or socket besides
    for kind, most in bounds.items():
        resource.setrlimit(kind, (most, most))
