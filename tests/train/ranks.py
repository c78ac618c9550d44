"""Runs of several processes on this machine, over gloo, each of them a function of a test module.

    ranks.together(function, size, folder)    # function(folder) in `size` processes of one group
"""

import json
import os
import random
import socket
from contextlib import suppress

import torch

from train import kills


def together(function, size, folder, seconds=240):
    """Their exit codes. A process that hangs is killed, and its code is -9."""
    return ended(begin(function, size, folder), seconds)


def begin(function, size, folder):
    """The processes, by rank."""
    folder.mkdir(exist_ok=True)
    port = _free()
    return [kills.process(_rank, function, size, rank, port, str(folder)) for rank in range(size)]


def _free():
    """A port that nobody has: below those that connections are given, which come and go."""
    while True:
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port := random.randrange(10_000, 32_768)))
            return port


def ended(children, seconds=240):
    """Their exit codes, when they have ended."""
    for child in children:
        child.join(seconds)
        if child.is_alive():
            child.kill()
            child.join()
    return [child.exitcode for child in children]


def _rank(function, size, rank, port, folder):
    from pathlib import Path

    from mirada.train.world import leave
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(Path(folder))
    leave()


def keep(path, content):
    """JSON that a test reads when the processes have ended."""
    path.write_text(json.dumps(content))
