"""Batches and channel statistics."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from msmamba.data.samples import Sample, StackedSamples
from msmamba.errors import ImageError
from msmamba.images import Transform
from msmamba.model.training import loading
from msmamba.model.training.augmentation import Augmentation
from msmamba.model.training.loading import (
    Batches,
    EvaluationImages,
    Images,
    ShuffledBatches,
    TrainingImages,
    channel_statistics,
    images_of,
)

PLAIN = Transform(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Seven noise images of odd and different sizes."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(7):
        pixels = generator.integers(0, 256, (33 + number, 47 - number, 3), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        made.append(Sample(path, number % 3))
    return made


@settings(deadline=None)
@given(count=st.integers(2, 70), batch_size=st.integers(2, 17), seed=st.integers(0, 5))
def test_an_epoch_takes_every_image_once_and_no_batch_of_one(count: int, batch_size: int, seed: int) -> None:
    order = ShuffledBatches(count, batch_size, seed)
    order.epoch = 3
    batches = list(order)
    assert len(batches) == len(order)
    assert sorted(index for batch in batches for _, index in batch) == list(range(count))
    assert {epoch for batch in batches for epoch, _ in batch} == {3}
    assert min(map(len, batches)) >= 2
    assert max(map(len, batches)) <= batch_size + 1
    assert list(order) == batches


def test_epochs_differ_in_order_and_augmentation(samples: list[Sample]) -> None:
    order = ShuffledBatches(50, 4, seed=0)
    epochs = []
    for order.epoch in (1, 2):
        epochs.append([index for batch in order for _, index in batch])
    assert epochs[0] != epochs[1]
    images = TrainingImages(Images(samples), Augmentation(), PLAIN, seed=0)
    assert not np.array_equal(images[1, 0][0], images[2, 0][0])
    assert not np.array_equal(
        images[1, 0][0], TrainingImages(Images(samples), Augmentation(), PLAIN, 1)[1, 0][0]
    )
    np.testing.assert_array_equal(images[1, 0][0], images[1, 0][0])


def test_batches_do_not_depend_on_the_workers_nor_touch_the_random_state(samples: list[Sample]) -> None:
    dataset = TrainingImages(Images(samples), Augmentation(horizontal_flip=True), PLAIN, seed=0)
    results = []
    for workers in (0, 2):
        order = ShuffledBatches(len(samples), 3, seed=0)
        loader = Batches(dataset, workers, batch_sampler=order)
        torch.manual_seed(5)
        for order.epoch in (1, 2):
            results.append([(images, labels) for images, labels in loader])
        assert torch.initial_seed() == 5
        results.append([(torch.rand(3), torch.zeros(0))])
    half = len(results) // 2
    for here, there in zip(results[:half], results[half:], strict=True):
        for (images, labels), (other_images, other_labels) in zip(here, there, strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)
    # Through a pipe: shared memory that is full would have PyTorch wait for ever.
    assert not any(labels.is_shared() for part in results for _, labels in part)
    images, labels = results[0][0]
    assert images.shape == (3, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("cache_bytes", "kept"),
    [pytest.param(0, 0, id="none"), pytest.param(10_000, 2, id="two"), pytest.param(1 << 20, 7, id="all")],
)
def test_the_cache_keeps_its_bound_and_changes_no_pixel(
    samples: list[Sample], cache_bytes: int, kept: int
) -> None:
    images = Images(samples, cache_bytes)
    first = [images.read(index).copy() for index in range(len(images))]
    for index, pixels in enumerate(first):
        np.testing.assert_array_equal(images.read(index), pixels)
    for sample in samples:
        sample.source.unlink()
    for index in range(kept):  # from memory
        np.testing.assert_array_equal(images.read(index), first[index])
    for index in range(kept, len(images)):
        with pytest.raises(ImageError, match="does not exist"):
            images.read(index)


def test_the_evaluation_view_is_the_runtime_transform(samples: list[Sample]) -> None:
    transform = Transform(64, mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3))
    images = Images(samples)
    values, label = EvaluationImages(images, transform)[4]
    np.testing.assert_array_equal(values, transform(images.read(4)))
    assert label == samples[4].label


@pytest.mark.gpu
def test_batches_for_a_gpu_lie_in_page_locked_memory(samples: list[Sample]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no CUDA device")
    images = EvaluationImages(Images(samples), PLAIN)
    plain, pinned = (next(iter(Batches(images, pinned=pinned, batch_size=2)))[0] for pinned in (False, True))
    assert (plain.is_pinned(), pinned.is_pinned()) == (False, True)
    assert torch.equal(plain, pinned)


def test_channel_statistics_are_those_of_all_resized_pixels(samples: list[Sample]) -> None:
    images = Images(samples)
    stack = np.stack([PLAIN.resize(images.read(index)) for index in range(len(images))]) / 255
    mean, std = channel_statistics(images, 32)
    assert mean == pytest.approx(stack.mean(axis=(0, 1, 2)), abs=1e-12)
    assert std == pytest.approx(stack.std(axis=(0, 1, 2)), abs=1e-12)


def test_a_channel_without_contrast_gets_a_deviation_of_one(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), 77, np.uint8)
    pixels[::2, :, 1] = 99
    Image.fromarray(pixels).save(tmp_path / "flat.png")
    mean, std = channel_statistics(Images([Sample(tmp_path / "flat.png", 0)]), 8)
    assert mean[0] == pytest.approx(77 / 255)
    assert std == (1.0, pytest.approx(11 / 255), 1.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(samples: list[Sample], workers: int) -> None:
    samples[5].source.write_bytes(b"\x89PNG broken")
    loader = Batches(EvaluationImages(Images(samples), PLAIN), workers, batch_size=4)
    with pytest.raises(ImageError, match=r"5\.png' is truncated or corrupt|5\.png' is not a PNG") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


def test_splits_share_the_room_by_their_images(samples: list[Sample]) -> None:
    splits = images_of({"train": samples[:6], "val": samples[6:]}, cache_bytes=14_000)
    for images in splits.values():
        for index in range(len(images)):
            images.read(index)
    assert {name: len(images._cache) for name, images in splits.items()} == {"train": 2, "val": 0}


def test_workers_together_keep_to_the_bound(samples: list[Sample]) -> None:
    """What each worker has kept is asked by an image that tells it in place of its pixels."""

    class Telling(EvaluationImages):
        def pixels(self, index: int) -> tuple[np.ndarray, int]:
            self.images.read(index)
            kept = sum(pixels.nbytes for pixels in self.images._cache.values())
            return np.frombuffer(np.array([os.getpid(), kept, 0], np.int32).tobytes(), np.uint8).reshape(
                2, 2, 3
            ), 0

    images = Images(samples, 20_000)
    told: dict[int, int] = {}
    bytes_as_they_are = Transform(2, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    loader = Batches(Telling(images, bytes_as_they_are), 2, batch_size=1)
    for _ in range(2):
        for values, _labels in loader:
            process, kept, _ = np.frombuffer(
                values[0].permute(1, 2, 0).to(torch.uint8).numpy().tobytes(), np.int32
            )
            told[int(process)] = int(kept)
    assert len(told) == 2
    assert all(0 < kept <= 10_000 for kept in told.values())
    assert images._cache == {}


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_take_no_copies_of_what_was_kept(
    samples: list[Sample], start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share it where they are forked, and else keep their own: whatever Python's default is."""
    monkeypatch.setattr(loading, "START", start)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        images = Images(samples)
        for index in range(len(images)):
            images.read(index)
        loader = Batches(EvaluationImages(images, PLAIN), 1, batch_size=3)
        assert len(images._cache) == (len(samples) if start == "fork" else 0)
        read = torch.cat([batch for batch, _ in loader])
        kinds = {type(worker).__name__ for worker in multiprocessing.active_children()}
        assert f"{start.capitalize()}Process" in kinds
    finally:
        multiprocessing.set_start_method(before, force=True)
    alone = Batches(EvaluationImages(Images(samples), PLAIN), batch_size=3)
    assert torch.equal(read, torch.cat([batch for batch, _ in alone]))


def test_images_of_a_stack_are_read_in_place_and_not_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "stack.npy", pixels)
    images = Images(StackedSamples([tmp_path / "stack.npy"], [0] * 6, range(6), [0, 1] * 3))
    results = []
    for workers in (0, 2):
        loader = Batches(EvaluationImages(images, PLAIN), workers, batch_size=4)
        results.append([(values.numpy(), labels.tolist()) for values, labels in loader])
    assert [labels for _, labels in results[0]] == [[0, 1, 0, 1], [0, 1]]
    for (here, _), (there, _) in zip(*results, strict=True):
        np.testing.assert_array_equal(here, there)
    np.testing.assert_array_equal(images.read(5), np.repeat(pixels[5][..., None], 3, axis=2))
    assert images._cache == {}
