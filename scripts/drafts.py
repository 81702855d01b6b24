"""New folders that appear whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import InvalidInput


@contextmanager
def drafted(out: Path) -> Iterator[Path]:
    """A folder to fill beside `out`, which it becomes at the end.

    Raises:
        InvalidInput: `out` exists.
    """
    if out.exists():
        raise InvalidInput(f"{out} exists already; choose another --out")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def put_file(source: Path, target: Path, link: bool) -> None:
    """Copies a file, or links to it; makes the folders above."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)
