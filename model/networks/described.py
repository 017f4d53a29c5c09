"""What is known of a checkpoint's classes and images: what it says itself, or a user in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...data.labels import as_labels, labels_as_asked
from ...errors import ArtefactError, InputError
from ...images import FULL_WHITE, Transform, as_channels, channels_as_asked, white_as_asked
from ...resize import RULES
from .checkpoint import Checkpoint

DEFAULT_SIZE = 224
"""S of a checkpoint that does not say: the paper's."""
_SIZE_TAKEN = (
    f"it does not say the size of its images: {DEFAULT_SIZE} pixels are taken, as in the paper; where it was "
    "trained at another, say so with --image-size, or its answers are worse"
)


@dataclass(frozen=True)
class Described:
    """What a user says of a model that does not say it itself, or in place of what it says."""

    labels: Sequence[str] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    image_size: int | None = None
    """S, pixels."""
    weights_of: str | None = None
    """Which are taken of a checkpoint that has both: ``model``, or ``ema``, their moving average."""
    white_level: int | None = None
    """The value of white in 16-bit images."""
    network: str | None = None
    """The name of the network that a state dict is of."""


def described_by(
    checkpoint: Checkpoint, described: Described, name: str
) -> tuple[tuple[str, ...], Transform]:
    """A checkpoint's class names, and the transform to its input.

    Args:
        checkpoint: may say both, or neither (the authors' state dicts).
        described: goes before what the checkpoint says.
        name: what messages call the checkpoint.

    Raises:
        ArtefactError: neither says the labels or the channel statistics, or the labels are not as many as
            the classes.
        InputError: the labels are no distinct names, the means or deviations not three sensible numbers, or
            the network does not take images of that size.
    """
    said = checkpoint.preprocessing
    labels = checkpoint.labels if described.labels is None else as_labels(described.labels)
    mean = described.mean if described.mean is not None else said.mean if said else None
    std = described.std if described.std is not None else said.std if said else None
    if labels is None or mean is None or std is None:
        raise undescribed(name, labels=labels, preprocessing=mean is not None and std is not None)
    classes = checkpoint.network.arch.num_classes
    if len(labels) != classes:
        raise ArtefactError(f"{len(labels)} labels were given, but {name} has {classes} classes")
    size, white = described.image_size, described.white_level
    if size is None:
        size = said.image_size if said else DEFAULT_SIZE
    if white is None:
        white = said.white_level if said else FULL_WHITE
    transform = Transform(size, as_channels("mean", mean), as_channels("std", std), white)
    try:
        checkpoint.network.check_image_shape((1, 3, size, size))
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    return labels, transform


def notes_on(checkpoint: Checkpoint, described: Described) -> tuple[str, ...]:
    """What whoever shows pictures to a checkpoint's network should know, one line each; mostly empty."""
    said = checkpoint.preprocessing
    notes = (
        RULES[checkpoint.resize],
        None if said or described.image_size else _SIZE_TAKEN,
        labels_as_asked(described.labels, checkpoint.labels),
        channels_as_asked("mean", described.mean, said.mean if said else None),
        channels_as_asked("std", described.std, said.std if said else None),
        white_as_asked(described.white_level, said.white_level if said else None),
    )
    return tuple(filter(None, notes))


def undescribed(name: str, *, labels: object, preprocessing: object) -> ArtefactError:
    """The error of a model that says too little; what is not there is None."""
    missing = [] if labels else ["its class names (--labels)"]
    missing += [] if preprocessing else ["its channels' mean and std (--mean, --std)"]
    return ArtefactError(f"{name} does not say {' and '.join(missing)}: give what is missing")
