"""The campaign of `fuzz/`: its inputs are the same every time, its doors answer, and it sees what fails."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="the campaign exports a network")
FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))

import campaign  # noqa: E402  after the path to it
import relations  # noqa: E402
from mutation import mutated, mutated_json, mutated_table  # noqa: E402
from seeds import Seeds  # noqa: E402
from targets import TARGETS  # noqa: E402

from msmamba.errors import MsmambaError  # noqa: E402

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the campaign bounds its children as POSIX can")

IN_A_PROCESS_OF_THEIR_OWN = ("nodes", "onnx", "slides")
"""What ONNX Runtime and OpenSlide may die of."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, threads_as_before: None) -> Seeds:
    return Seeds.in_folder(tmp_path_factory.mktemp("campaign") / "seeds")


@pytest.mark.parametrize(
    "mutate",
    [
        lambda generator: mutated(b"a good file " * 50, generator),
        lambda generator: mutated_json({"labels": ["a", "b"], "size": 3}, generator),
        lambda generator: mutated_table("a,b\n1,2\n3,4", generator),
    ],
    ids=["bytes", "json", "csv"],
)
def test_a_seed_gives_the_same_input_every_time_and_others_others(mutate: Any) -> None:
    inputs = [mutate(random.Random(seed)) for seed in range(200)]
    assert inputs == [mutate(random.Random(seed)) for seed in range(200)]
    assert len(set(inputs)) > 100


@pytest.mark.filterwarnings("ignore")  # as the command does: damaged files are what libraries warn of
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_makes_the_same_input_every_time_and_its_door_answers(
    name: str, seeds: Seeds, tmp_path: Path
) -> None:
    target = TARGETS[name](seeds)
    answers = 0
    for number in range(4):
        made = []
        for twice in "ab":
            folder = tmp_path / f"{number}{twice}"
            folder.mkdir()
            made.append(target.make(random.Random(f"{name} {number}"), folder))
        if name in IN_A_PROCESS_OF_THEIR_OWN:
            continue
        # What else it raises is for the campaign to find, and for whoever owns the door.
        with suppress(Exception):
            answers += answered(target.open, made[0])
        assert contents(tmp_path / f"{number}a", made[0]) == contents(tmp_path / f"{number}b", made[1])
    assert answers > 0 or name in IN_A_PROCESS_OF_THEIR_OWN


def answered(door: Any, path: Path) -> bool:
    """Takes an input through a door: it is taken, or refused by an error of msmamba's."""
    with suppress(MsmambaError):
        door(path)
    return True


def contents(folder: Path, made: Path) -> dict[str, bytes]:
    """Of what a target made, an archive's times and a door's own output aside."""
    files = [made] if made.is_file() else [path for path in made.rglob("*") if path.is_file()]
    timed = (".npz", ".pth", ".calib", ".pt")
    return {
        path.relative_to(folder).as_posix(): b"" if path.suffix in timed else path.read_bytes()
        for path in files
    }


def test_a_relation_that_is_broken_or_fails_is_a_finding_and_one_that_holds_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(lab: object, chance: random.Random, work: Path) -> Iterator[str]:
        (work / "situation").write_text(str(chance.random()))
        yield from relations.lab.differ("the two", 1, 2)

    def failing(lab: object, chance: random.Random, work: Path) -> Iterator[str]:
        yield from relations.lab.apart("the two", [0.5], [0.5])
        raise ZeroDivisionError

    def holds(lab: object, chance: random.Random, work: Path) -> Iterator[str]:
        yield from relations.lab.apart("the two", [0.5], [0.5 + 1e-6])

    tried = {each.__name__: each for each in (broken, failing, holds)}
    monkeypatch.setitem(relations.AREAS, "a", tried)
    count = relations.run("a", Seeds(tmp_path), tmp_path, scale=2, seed=3)
    assert (count.tried, count.findings) == (6, 4)
    kept = {path.name: (path / "said.txt").read_text() for path in (tmp_path / "findings").iterdir()}
    assert {*kept} == {f"same-a-{name}-3-{number}" for name in ("broken", "failing") for number in (0, 1)}
    assert kept["same-a-broken-3-1"] == "the two: 1, expected 2"
    assert "ZeroDivisionError" in kept["same-a-failing-3-0"]
    situation = (tmp_path / "findings" / "same-a-broken-3-1" / "situation").read_text()
    assert situation == str(random.Random("a broken 3 1").random())


def test_two_values_are_told_apart_by_their_shape_too() -> None:
    assert [*relations.lab.apart("x", [1.0], [1.0, 2.0])] == ["x: of shape (1,), expected (2,)"]
    assert [*relations.lab.apart("x", [1.0, float("nan")], [1.0, 2.0])] == [
        "x: nan apart, at most 2e-06 expected"
    ]


class Failing:
    """A target whose inputs fail in every way there is."""

    inputs = 5

    def __init__(self, seeds: Seeds) -> None:
        """Needs nothing."""

    def make(self, generator: random.Random, folder: Path) -> Path:
        (folder / "input").write_text(str(generator.random()))
        return folder / "input"

    def open(self, path: Path) -> object:
        number = len(list(path.parents[1].glob("tried*")))
        (path.parents[1] / f"tried{number}").touch()
        if number == 0:
            raise MsmambaError("found x, expected y")
        if number == 1:
            raise ZeroDivisionError
        if number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 3:
            time.sleep(60)
        return number


def test_an_exception_a_death_and_a_hang_are_findings_and_a_refusal_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child imports the targets anew: it finds the failing one by a module of its own.
    code = (
        f"import sys; sys.path[:0] = [{str(FUZZ)!r}, {str(Path(__file__).parent)!r}]\n"
        "import campaign, targets, test_campaign\n"
        "from pathlib import Path\n"
        "from seeds import Seeds\n"
        "targets.TARGETS['failing'] = test_campaign.Failing\n"
        "name, folder, work, *numbers = sys.argv[1:]\n"
        "campaign._child(name, Seeds(Path(folder)), Path(work), *map(int, numbers))\n"
    )
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(campaign, "__file__", str(tmp_path / "child.py"))
    monkeypatch.setattr(campaign, "WAIT_SECONDS", 8.0)
    monkeypatch.setitem(TARGETS, "failing", Failing)
    count = campaign.attack("failing", Seeds(tmp_path), tmp_path, scale=1, seed=0)
    assert (count.tried, count.refused, count.findings) == (5, 1, 3)
    said = [(path / "said.txt").read_text() for path in sorted((tmp_path / "findings").iterdir())]
    assert "ZeroDivisionError" in said[0]
    assert "SIGSEGV" in said[1]
    assert "did not end in 0 s of the processor's time, " in said[2]
    for number in (1, 2, 3):
        kept = (tmp_path / "findings" / f"failing-0-{number}" / "input").read_text()
        assert kept == str(random.Random(f"failing 0 {number}").random())
