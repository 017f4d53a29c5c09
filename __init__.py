"""msmamba: takes Microscopic-Mamba to the machine beside the microscope (import name and install name)."""

from __future__ import annotations

__version__ = "0.1.0"
