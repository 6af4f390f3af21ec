"""How long `vistune --help` takes, and what it imports: no torch, no transformers.

    python benchmarks/startup.py [--repeats 7]

Exits with an error if one of the heavy packages is loaded. The result is benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULT = Path(__file__).resolve().parent / "results" / "startup.json"
HEAVY = ("torch", "transformers", "peft", "accelerate", "matplotlib", "openai", "av", "numpy", "PIL")
HELP = ("-m", "vistune", "--help")


def imports() -> dict[str, float]:
    """Every module that `--help` imports, with the milliseconds spent in it and in what it imports."""
    finished = subprocess.run([sys.executable, "-X", "importtime", *HELP], capture_output=True, text=True, check=True)
    lines = [line.removeprefix("import time:").split("|") for line in finished.stderr.splitlines() if line.startswith("import time:")]
    return {name.strip(): int(cumulative) / 1e3 for _, cumulative, name in lines if cumulative.strip().isdigit()}


def seconds(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    loaded = imports()  # the first start also fills the caches of files and bytecode
    runs = [seconds(*HELP) for _ in range(repeats)]
    importing = [imports()["vistune.cli"] for _ in range(repeats)]
    bare = statistics.median(seconds("-c", "pass") for _ in range(repeats))
    heavy = sorted({name.split(".")[0] for name in loaded} & set(HEAVY))
    result = {
        "command": "python " + " ".join(HELP),
        "seconds_median": round(statistics.median(runs), 3),
        "seconds_min": round(min(runs), 3),
        "seconds_of_bare_python": round(bare, 3),
        "import_ms_of_vistune_cli_median": round(statistics.median(importing), 1),
        "modules": len(loaded),
        "heavy_packages_loaded": heavy,
        "repeats": repeats,
        "environment": {"python": platform.python_version(), "machine": platform.machine()},
    }
    print(json.dumps(result, indent=1))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    if heavy:
        sys.exit(f"`vistune --help` loads {', '.join(heavy)}; import them inside the verbs that need them.")


if __name__ == "__main__":
    main()
