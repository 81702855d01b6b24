"""`python -m tests.make_bundle FOLDER`: a real bundle for whoever needs one, such as the check of the container."""

import sys
from pathlib import Path

from tests.conftest import GARMENTS, export_tiny

if __name__ == "__main__":
    export_tiny(Path(sys.argv[1]), "multiclass", GARMENTS)
