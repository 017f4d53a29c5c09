"""Calibration: what INT8 ranges are measured on, and how; and a bundle's `guard`, fitted on labelled images.

    images on disk ── data ──► a seeded, class-balanced set, known by its images' hashes
    set + ONNX file ── activations ──► one histogram of absolute values for each activation, image by image
    histogram ── ranges ──► the largest value that int8 tells apart: min-max, percentile or entropy

Memory is bounded: histograms are kept, activations are not. A run that was killed goes on from its cache
file, which is refused when model, images or preprocessing are not those that it was measured with.
"""

from __future__ import annotations

from .activations import measure
from .data import CalibrationImage, CalibrationSet, choose
from .histogram import Histogram
from .ranges import METHODS, range_of

__all__ = ["METHODS", "CalibrationImage", "CalibrationSet", "Histogram", "choose", "measure", "range_of"]
