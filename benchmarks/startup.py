"""What a command costs before it does anything: seconds and modules, against bare Python.

Run: python benchmarks/startup.py. Figures are medians of alternating runs on this machine.
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import mirada": [sys.executable, "-c", "import mirada"],
    "mirada --help": [sys.executable, "-m", "mirada.cli", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}
COUNT = "import sys; n = len(sys.modules); import mirada; print(len(sys.modules) - n)"


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main(runs: int = 7) -> None:
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    bare = statistics.median(taken["python -c pass"])
    for name, times in taken.items():
        middle = statistics.median(times)
        print(f"{name:16} {middle:6.3f} s   {middle / bare:5.1f} × bare Python")
    modules = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True)
    print(f"import mirada loads {modules.stdout.strip()} modules")


if __name__ == "__main__":
    main()
