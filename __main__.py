"""``python -m msmamba``: the command `mmdeploy`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
