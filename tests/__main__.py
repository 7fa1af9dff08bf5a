"""`python -m tests`: ruff, mypy and pytest, in this order, stopping at the first that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (
    ["ruff", "check", "."],
    ["mypy"],
    ["pytest", "-n", "2", *sys.argv[1:]],
)


def main() -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name, *arguments in CHECKS:
        print(f"$ {name} {' '.join(arguments)}", flush=True)
        code = subprocess.call([sys.executable, "-m", name, *arguments], cwd=ROOT, env=environment)
        if code:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
