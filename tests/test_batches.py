import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.card import ImageInput
from models.errors import InvalidInput
from scripts.batches import Files, Memory, augment, epoch_batches, open_store, prefetch
from scripts.readers import Sample, read_dataset
from tests.pictures import draw_folders

SPEC = ImageInput(height=12, width=16)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    return read_dataset(draw_folders(tmp_path_factory.mktemp("d") / "pictures", per_class=5)).samples


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


@pytest.mark.parametrize("count", [2, 7, 8, 9, 16, 17, 100])
def test_every_sample_is_in_one_batch_and_no_batch_has_a_single_sample(count: int) -> None:
    batches = epoch_batches(count, 8, seed=3, epoch=0)
    assert sorted(itertools.chain.from_iterable(batch.tolist() for batch in batches)) == list(range(count))
    assert all(2 <= len(batch) <= 9 for batch in batches)


def test_the_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(k) for k in np.concatenate(epoch_batches(50, 8, seed, epoch))]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4


def test_images_from_memory_and_from_files_are_the_same(samples: tuple[Sample, ...]) -> None:
    cached, lazy = open_store(samples, SPEC, cache_mb=1), open_store(samples, SPEC, cache_mb=0)
    assert isinstance(cached, Memory) and isinstance(lazy, Files)
    batches = epoch_batches(len(samples), 4, 0, 0)
    for (one, a), (other, b), batch in zip(prefetch(cached, batches), prefetch(lazy, batches), batches, strict=True):
        assert np.array_equal(one, batch) and np.array_equal(other, batch)
        assert a.shape == (len(batch), 12, 16, 3) and a.dtype == np.uint8
        assert np.array_equal(a, b)


def test_batches_of_files_can_be_left_early(samples: tuple[Sample, ...]) -> None:
    batches = prefetch(open_store(samples, SPEC, cache_mb=0), epoch_batches(len(samples), 2, 0, 0))
    assert next(iter(batches))[1].shape[0] == 2


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_a_file_that_has_gone_is_named(samples: tuple[Sample, ...], tmp_path: Path, cache_mb: int) -> None:
    gone = Sample(str(tmp_path / "gone.png"), 0, "list.csv:7")
    with pytest.raises(InvalidInput, match=r"list\.csv:7: gone\.png: No such file"):
        list(prefetch(open_store([*samples, gone], SPEC, cache_mb), [np.arange(len(samples) + 1)]))


def test_augmentation_follows_from_its_seed_and_is_off_when_off() -> None:
    images = torch.rand(64, 3, 9, 9)
    assert augment(images, flip=False, crop=False, seed=(0, 0, 0)) is images
    one, same, other = (augment(images, flip=True, crop=True, seed=(0, 0, k)) for k in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.shape == images.shape and one.dtype == torch.float32


def test_flips_mirror_about_half_of_the_images_and_change_nothing_else() -> None:
    images = torch.rand(400, 3, 5, 7)
    out = augment(images, flip=True, crop=False, seed=(1, 2, 3))
    kept = torch.isclose(out, images).flatten(1).all(dim=1)
    mirrored = torch.isclose(out, images.flip(3)).flatten(1).all(dim=1)
    assert bool((kept ^ mirrored).all())
    assert 150 < int(kept.sum()) < 250


def test_crops_move_each_image_by_a_tenth_at_most() -> None:
    dot = torch.zeros(300, 3, 41, 41)
    dot[:, :, 18:23, 18:23] = 1.0
    out = augment(dot, flip=False, crop=True, seed=(0, 0, 0))[:, 0]
    mass = out.sum(dim=(1, 2))
    columns = (out.sum(dim=1) * torch.arange(41.0)).sum(dim=1) / mass - 20.0
    assert 3.0 < float(columns.abs().max()) < 41 * 0.1 * 1.1 + 0.2
    assert float(columns.mean()) == pytest.approx(0.0, abs=0.5)
    assert 25 / 1.1**2 - 2 < float(mass.min()) < 24 and 26 < float(mass.max()) < 25 * 1.1**2 + 2
