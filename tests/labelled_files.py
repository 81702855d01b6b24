"""Real little data sets on disk, for the tests of what reads them."""

from pathlib import Path

import pytest
from PIL import Image

from models.errors import InvalidInput
from scripts.readers import DataSet, read_dataset

HOSTILE = [
    "=1+1.png",
    "+a.png",
    "-b.png",
    "@c.png",
    "a,b.png",
    'say "hi".png',
    "two words.png",
    "größe 猫.png",
    "'q.png",
]


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (shade, 0, 0)).save(path)
    return path


def pictures(root: Path, *names: str) -> None:
    for shade, name in enumerate(names):
        picture(root / name, shade % 256)


def table(root: Path, text: str, name: str = "list.csv") -> Path:
    path = root / name
    path.write_bytes(text.encode())
    return path


def labelled(data: DataSet) -> dict[str, str]:
    return {data.relative(s): "|".join(data.labels[k] for k in s.classes) for s in data.samples}


def fails(path: Path, **options: object) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_dataset(path, **options)  # type: ignore[arg-type]
    return str(caught.value)
