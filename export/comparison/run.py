"""Networks compared on one's own data: one recipe and split for all, down to artefacts that are timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...data.splitting import DEALING
from ...errors import ExportError, ImageError, InputError, MsmambaError
from ...files import as_utf8
from ...measures.metrics import check_can_measure
from ...measures.predictions import Predictions
from ...measures.uncertainty import RESAMPLES
from ...model.evaluation.table import printed_row
from ...model.networks.registry import architecture_named, outline
from ...model.training.loop import Hardware, data_asked, recipe_asked
from ...pages.page import check_can_write_pages
from ...runtime.benchmark import BenchmarkOptions
from ...schema import as_json
from .folder import MARKDOWN, PAGE, RESULTS, ROWS, ComparisonFolder
from .latency import latencies
from .page import page_of
from .results import Comparison, Difference, Entry, Failure, Scores
from .stages import Stages, Watch, counted, split_of
from .table import table_of

PRECISIONS = ("fp32", "fp16")


def compare_networks(
    data: str | Path,
    output: str | Path,
    networks: Sequence[str],
    *,
    preset: str | None = None,
    figures: Mapping[str, Any] | None = None,
    group_by: str | None = None,
    skip_bad: bool = False,
    white_level: int | None = None,
    mpp: float | None = None,
    hardware: Hardware | None = None,
    precision: str = "fp32",
    bench: BenchmarkOptions | None = None,
    resamples: int = RESAMPLES,
    watch: Watch | None = None,
) -> Comparison:
    """Trains, exports, verifies and times networks, and writes what they come to.

    Called again after it was stopped, it goes on with what is missing; what failed is tried again. What is
    not given is what the comparison was begun with then, and networks and precision may be others: what is
    trained is not trained again.

    Args:
        data: the folder of images (see `read_training_folder`).
        output: the comparison's folder (see `folder`), new or one that was begun with the same.
        networks: the registry's names.
        preset: as `train_folder` takes it, as what follows.
        figures: what the recipe has in place of the preset's figures.
        group_by: regular expression of the groups in file names.
        skip_bad: read every image first, and leave out those that cannot be read.
        white_level: the value of white in 16-bit images.
        mpp: microns a pixel of the images as they are stored.
        hardware: what is trained on; the CPU by default.
        precision: ``fp32`` or ``fp16``, of the exported networks.
        bench: how latencies are measured.
        resamples: how many the bootstrap draws.
        watch: is told how it goes.

    Returns:
        What came out; `Comparison.failed` has the networks that came to no end.

    Raises:
        InputError: a network that there is not or that takes no such images, or figures that make no sense;
            nothing is trained then.
        BackendError: Matplotlib, Jinja or scikit-learn is missing.
        DataError: a folder that cannot be trained on.
        ImageError: an image cannot be read.
        TrainingError: the folder was begun with something else.
        TargetError: the folder cannot be written, holds something else, or another process works in it.
    """
    names, watch = tuple(dict.fromkeys(networks)), watch or Watch()
    if not names:
        raise InputError("no network to compare: give at least one")
    if precision not in PRECISIONS:
        raise ExportError(
            f"precision {precision!r} cannot be compared: choose one of {', '.join(PRECISIONS)}"
        )
    hardware, folder = hardware or Hardware(), ComparisonFolder(output)
    begun = folder.begun()
    recipe = recipe_asked(preset, figures, begun.recipe if begun else None)
    if begun is not None:
        group_by = begun.group_by if group_by is None else group_by
        skip_bad = skip_bad or begun.skipped
        white_level = begun.white_level if white_level is None else white_level
        mpp = begun.mpp if mpp is None else mpp
    check_can_write_pages()
    check_can_measure()
    _check_networks(names, recipe.image_size)
    images = data_asked(
        data,
        recipe.seed,
        group_by,
        dealing=DEALING if begun is None else begun.dealing,
        skip_bad=skip_bad,
        threads=hardware.threads,
    )
    sizes = counted(names, len(images.labels), recipe.image_size)
    with folder.locked():
        folder.begin(images, recipe, white_level, mpp)
        stages = Stages(folder, images, recipe, hardware, precision, white_level, mpp, watch)
        groups = images.drawn_together(split_of(images))
        comparison = Comparison(
            data=images.name,
            root=str(images.root),
            split=split_of(images),
            counts={name: len(samples) for name, samples in images.splits.items()},
            groups=None if groups is None else len(set(groups)),
            recipe=recipe,
            precision=precision,
            entries=tuple(
                Entry(name, count.parameters, count.macs, printed_row(arch, images.name))
                for name, (arch, count) in sizes.items()
            ),
        )
        return _Run(stages, comparison, resamples).to_the_end(bench or BenchmarkOptions())


@dataclass
class _Run:
    """A comparison under way."""

    stages: Stages
    comparison: Comparison
    resamples: int
    answers: dict[str, Predictions] = field(default_factory=dict)
    """What the trained networks say of the images, by name."""
    differences: dict[str, dict[str, Difference | None]] = field(default_factory=dict)
    """Those that were computed, by the name of the best and of the network."""

    def to_the_end(self, bench: BenchmarkOptions) -> Comparison:
        for place in range(len(self.comparison.entries)):
            before = self.stages.begun
            self._take(place)
            if self.stages.begun > before:  # else all of it was there already
                self._write()
        self._time(bench)
        self._write()
        return self.comparison

    def _take(self, place: int) -> None:
        """Takes a network as far as it comes."""
        entry, stage = self.comparison.entries[place], "training"
        arch = architecture_named(entry.network, num_classes=len(self.stages.data.labels))
        try:
            trained = self.stages.trained(entry.network, arch)
            stage = "results"
            entry = replace(entry, scores=Scores.of(trained, self.resamples))
            self.answers[entry.network] = trained.predictions
            stage = "export"
            self.stages.exported(entry.network)
            stage = "parity"
            entry = replace(entry, parity=self.stages.verified(entry.network))
        except ImageError as error:  # of the data, and so every network's
            raise ImageError(
                f"{error}: mend such images and give the same command again, or compare in a new folder with "
                "--skip-bad"
            ) from error
        except Exception as error:  # whatever one network raises, a bug of it included, stops no other
            entry = replace(entry, failure=Failure(stage, _in_a_line(error)))
        self._put(place, entry)

    def _time(self, bench: BenchmarkOptions) -> None:
        """Times all that are exported, side by side."""
        ready = [place for place, entry in enumerate(self.comparison.entries) if entry.parity is not None]
        if not ready:
            return
        entries = self.comparison.entries
        names = [entries[place].network for place in ready]
        bundles = {name: self.stages.folder.bundle(name, self.stages.precision) for name in names}
        try:
            measured = latencies(self.stages.folder, bundles, bench, self.stages.watch)
        except MsmambaError as error:
            for place in ready:
                self._put(place, replace(entries[place], failure=Failure("latency", _in_a_line(error))))
            return
        for place, name in zip(ready, names, strict=True):
            self._put(place, replace(entries[place], latency=measured.networks[name]))
        self.comparison = replace(self.comparison, measured=measured)

    def _put(self, place: int, entry: Entry) -> None:
        entries = list(self.comparison.entries)
        entries[place] = entry
        self.comparison = replace(self.comparison, entries=tuple(entries))

    def _with_differences(self) -> Comparison:
        """The comparison with each network's difference to the best."""
        best = self.comparison.best
        if best is None:
            return self.comparison
        known = self.differences.setdefault(best.network, {})
        for name, own in self.answers.items():
            if name not in known and name != best.network:
                known[name] = Difference.of(own, self.answers[best.network])
        entries = [replace(each, difference=known.get(each.network)) for each in self.comparison.entries]
        return replace(self.comparison, entries=tuple(entries))

    def _write(self) -> None:
        self.comparison = self._with_differences()
        table = table_of(self.comparison)
        self.stages.folder.write(
            {
                RESULTS: as_utf8(as_json(self.comparison.to_dict(), indent=2) + "\n"),
                ROWS: as_utf8(table.to_csv()),
                MARKDOWN: as_utf8(table.to_markdown()),
                PAGE: as_utf8(page_of(self.comparison)),
            }
        )


def _check_networks(names: Sequence[str], image_size: int) -> None:
    """Tells of names and sizes that there are not before images are looked at, which may take long."""
    wrong = []
    for name in names:
        try:
            outline(architecture_named(name), image_size)
        except MsmambaError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("; ".join(wrong))


def _in_a_line(error: Exception) -> str:
    """What an error says; its kind stands before it where it is none of ours."""
    said = " ".join(str(error).split())
    return said if isinstance(error, MsmambaError) else f"{type(error).__name__}: {said}"
