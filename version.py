"""The version, in the one place that knows it; `setup.cfg` reads it from here."""

from __future__ import annotations

__version__ = "0.2.0"
