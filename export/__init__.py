"""From a checkpoint to ONNX, precisions, engines and bundles, and the proof that they still agree."""

from __future__ import annotations
