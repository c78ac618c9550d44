"""python -m mirada: the command, where its script is not on the path, and for torchrun."""

from mirada.cli import main

raise SystemExit(main())
