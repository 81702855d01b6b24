"""Images that are there twice with different labels: found through every way of saving them again, and few others."""

import io
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from models.fit import Pixels
from scripts.duplicates import Looks, find_duplicates, make_looks, nearest_other
from scripts.items import embedded_items
from scripts.readers import read_dataset
from tests.pictures import draw_folders

Look = Callable[[Iterable[Image.Image]], Looks]


@pytest.fixture
def look() -> Iterator[Look]:
    """Looks at pictures."""
    with tempfile.TemporaryFile() as file:

        def run(pictures: Iterable[Image.Image]) -> Looks:
            shown = [np.asarray(one.convert("RGB").resize((36, 32), Image.Resampling.BILINEAR)) for one in pictures]
            looks = make_looks(len(shown), file)
            for row, pixels in enumerate(shown):
                looks.put(row, pixels)
            return looks

        yield run


def as_images(pictures: Pixels) -> list[Image.Image]:
    return [Image.fromarray(one) for one in pictures]


def as_jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return Image.open(file)


def test_garments_of_different_classes_are_not_taken_for_each_other(look: Look) -> None:
    items = embedded_items("train")
    looks = look(as_images(items.images))
    assert (nearest_other(looks, items.classes) >= 0).sum() == 0
    hashes = looks.hashes[:500]
    close = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= 4
    assert (close & (items.classes[:500, None] != items.classes[None, :500])).sum() > 20  # the hash alone does


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda picture: picture.resize((84, 84), Image.Resampling.BICUBIC), 0.97),
        (lambda picture: ImageEnhance.Brightness(picture).enhance(0.8), 0.97),
        (as_jpeg, 0.85),
        (lambda picture: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM), -1.0),
    ],
    ids=["larger", "darker", "jpeg", "upside down"],
)
def test_garments_saved_again_with_another_label_are_found(
    look: Look, change: Callable[[Image.Image], Image.Image], least: float
) -> None:
    pictures = as_images(embedded_items("test").images)
    found = nearest_other(look([*pictures, *map(change, pictures)]), np.repeat([0, 1], 1000))
    right = (found[1000:] == np.arange(1000)).mean()
    assert right >= least if least >= 0 else right <= 0.1


def test_pictures_of_nothing_are_not_alike(look: Look) -> None:
    flat = [Image.new("L", (28, 28), level) for level in (0, 0, 90, 255)]
    assert nearest_other(look(flat), np.arange(4)).tolist() == [-1] * 4


def test_the_same_thing_in_another_colour_is_another_picture(look: Look) -> None:
    grey = embedded_items("test").images[0]
    red = np.stack([grey, grey // 4, grey // 4], axis=-1)
    pictures = [Image.fromarray(one) for one in (red, red[..., ::-1], np.clip(red, 4, 250))]
    assert nearest_other(look(pictures), np.arange(3)).tolist() == [2, -1, 0]


def test_of_several_the_most_similar_one_is_named_and_the_order_does_not_matter(look: Look) -> None:
    rng = np.random.default_rng(0)
    page = embedded_items("test").images[0].astype(np.int64)
    noisy = [np.clip(page + rng.normal(0, strength, page.shape), 0, 255) for strength in (0, 2, 1.5, 0.5)]
    pictures = as_images(np.stack(noisy).astype(np.uint8))
    found = nearest_other(look(pictures), np.array([0, 1, 1, 1]))
    assert found[0] == 3 and found[1:].tolist() == [0, 0, 0]
    assert nearest_other(look(pictures[::-1]), np.array([1, 1, 1, 0])).tolist() == [3, 3, 3, 0]


def test_files_are_compared_byte_for_byte_first_and_a_picture_with_the_same_label_is_no_matter(tmp_path: Path) -> None:
    root = draw_folders(tmp_path / "pictures", per_class=6)
    shutil.copy(root / "red" / "red_001.png", root / "plain" / "copy.png")
    shutil.copy(root / "red" / "red_002.png", root / "red" / "copy.png")
    Image.open(root / "barred" / "barred_003.png").resize((48, 48), Image.Resampling.BICUBIC).save(
        root / "plain" / "larger.png"
    )
    data = read_dataset(root, progress=False)
    found = find_duplicates(data)

    def named(pairs: dict[int, int]) -> set[tuple[str, str]]:
        return {(data.relative(data.samples[a]), data.relative(data.samples[b])) for a, b in pairs.items()}

    assert named(dict(found.same)) == {
        ("plain/copy.png", "red/red_001.png"), ("red/red_001.png", "plain/copy.png")
    }  # fmt: skip
    assert named(dict(found.near)) == {
        ("plain/larger.png", "barred/barred_003.png"), ("barred/barred_003.png", "plain/larger.png")
    }  # fmt: skip


def test_memory_does_not_grow_by_pictures_or_thumbnails(tmp_path: Path) -> None:
    content = (draw_folders(tmp_path / "drawn", per_class=1) / "plain" / "plain_000.png").read_bytes()
    peaks = list[int]()
    for count in (100, 1100):
        folder = tmp_path / f"{count}" / "plain"
        folder.mkdir(parents=True)
        for row in range(count):
            (folder / f"{row}.png").write_bytes(content + str(row).encode())
        data = read_dataset(folder.parent, progress=False)
        tracemalloc.start()
        find_duplicates(data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 1000 < 600, "bytes an image; a thumbnail alone has 864"
