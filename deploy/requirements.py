"""Prints what the image installs: the dependencies of pyproject.toml with the one runtime wheel of the variant."""

import sys
import tomllib
from pathlib import Path

RUNTIMES = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu[cuda,cudnn]"}


def main(variant: str) -> int:
    """Writes requirements to stdout."""
    if variant not in RUNTIMES:
        print(f"VARIANT is {variant}; it can be {' or '.join(RUNTIMES)}", file=sys.stderr)
        return 2
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    kept = [one for one in project["dependencies"] if not one.startswith("onnxruntime")]
    print("\n".join([*kept, RUNTIMES[variant]]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
