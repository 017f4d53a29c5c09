"""How often `mmdeploy drift` calls sessions changed in which nothing has.

    python benchmarks/drift_alarms.py [--sessions 200]

Live sessions are drawn, a frame a second, beside a calibration of 400 images. By one score: normal values,
each of which keeps 0.98 of the one before, an autocorrelation time of 99. By all fifteen scores: fields of a
normal brightness and so on, each looked at for a minute on average, by camera noise of a hundredth of what
fields differ. Beside it what a test says that counts every frame. The figures stand in docs/guard.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from msmamba.calib.drift import LEAST_D, LEVEL, chance, compared, ks_distance
from msmamba.runtime.drift import COMMANDS, SCORES, CalibratedScores, Logged, Origin

IMAGES = 400
KEPT, MINUTE, NOISE = 0.98, 60, 0.01

Draw = Callable[[np.random.Generator, int, tuple[str, ...]], dict[str, np.ndarray]]
"""The scores of a session of so many frames."""


def wandering(generator: np.random.Generator, frames: int, scores: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Each value keeps `KEPT` of the one before."""
    found = {}
    for name in scores:
        values = generator.normal(size=frames)
        for place in range(1, frames):
            values[place] = KEPT * values[place - 1] + np.sqrt(1 - KEPT**2) * values[place]
        found[name] = values
    return found


def by_fields(generator: np.random.Generator, frames: int, scores: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Fields, each looked at for a while."""
    fields = 100 + frames // 20
    lasts = 1 + generator.exponential(MINUTE, fields).astype(int)
    return {
        name: np.repeat(generator.normal(size=fields), lasts)[:frames] + generator.normal(0, NOISE, frames)
        for name in scores
    }


def alarms(sessions: int, frames: int, scores: tuple[str, ...], draw: Draw) -> tuple[int, int]:
    """Sessions called changed, and those that a test of one score calls so that counts frames."""
    generator = np.random.default_rng(0)
    found = naive = 0
    for _ in range(sessions):
        known = {name: generator.normal(size=IMAGES) for name in scores}
        seen = draw(generator, frames, scores)
        calibrated = CalibratedScores.of(
            [
                dict(zip(scores, row, strict=True))
                for row in zip(*(known[name].tolist() for name in scores), strict=True)
            ]
        )
        logged = Logged(
            Origin("", None),
            {name: seen.get(name, np.full(frames, np.nan)) for name in SCORES},
            np.full(frames, COMMANDS.index("live")),
            np.zeros(frames, np.int64),
            (),
            0,
        )
        found += any(score.changed for score in compared(logged, calibrated))
        distance = ks_distance(seen[scores[0]], known[scores[0]])
        naive += distance >= LEAST_D and chance(distance, frames, IMAGES) <= LEVEL
    return found, naive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sessions", type=int, default=200)
    options = parser.parse_args()
    for words, share, frames, scores, draw in (
        ("wandering, 600 frames, one score", 1, 600, SCORES[:1], wandering),
        ("wandering, 2,000 frames, one score", 1, 2000, SCORES[:1], wandering),
        ("ten minutes by fields, all scores", 1, 600, SCORES, by_fields),
        ("an hour by fields, all scores", 1, 3600, SCORES, by_fields),
        ("eight hours by fields, all scores", 0.3, 28800, SCORES, by_fields),
    ):
        sessions = int(share * options.sessions)
        found, naive = alarms(sessions, frames, scores, draw)
        print(f"{words}: {found} of {sessions} called changed; {naive} by one score where frames count")


if __name__ == "__main__":
    main()
