"""Listeners that show how a run goes: bars on a terminal, lines in a log, curves in TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ...errors import BackendError
from ...files import standard_output
from ...images import FULL_WHITE
from ...text import shown
from .figures import as_typed
from .history import Epoch
from .loop import Listener, Plan

if TYPE_CHECKING:
    from rich.console import Console


def describe_plan(plan: Plan) -> list[str]:
    """What a run is about to do, in a few lines."""
    lines = [
        f"{split}: {sum(counts.values())} images ({', '.join(f'{label} {n}' for label, n in counts.items())})"
        for split, counts in plan.counts.items()
    ]
    lines += [f"left out, because it cannot be read: {name}" for name in plan.skipped]
    mean, std = ([f"{value:.4f}" for value in values] for values in (plan.transform.mean, plan.transform.std))
    size = plan.transform.size
    white = f", white at {plan.transform.white_level}" if plan.transform.white_level != FULL_WHITE else ""
    lines.append(f"input {size}x{size}, channel mean {' '.join(mean)}, std {' '.join(std)}{white}")
    if plan.covers is not None:
        mpp = plan.covers.mpp(size)
        scale = "" if mpp is None else f": {mpp:.4g} microns a pixel of the input"
        lines.append(f"{plan.covers.to_text()}{scale}")
    overridden = [as_typed(name, row["run"]) for name, row in plan.recipe.overridden().items()]
    but = f", but {', '.join(overridden)}" if overridden else ""
    lines.append(f"recipe: {plan.recipe.preset}{but}")
    lines.append(f"{plan.parameters:,} parameters, at most {plan.epochs} epochs of {plan.steps} steps")
    if plan.processes > 1:
        lines.append(f"each step shared by {plan.processes} processes")
    if plan.done:
        lines.append(f"resumed after epoch {plan.done}")
    return [*map(shown, lines)]


def describe_epoch(epoch: Epoch, epochs: int, is_best: bool) -> str:
    """An epoch in one line of fixed width; ``*`` marks the best so far."""
    auc = "     -" if epoch.val_auc is None else f"{epoch.val_auc:.4f}"
    speed = "" if epoch.images_per_second is None else f"  {epoch.images_per_second:.1f} images/s"
    return (
        f"epoch {epoch.number:>{len(str(epochs))}}/{epochs}  "
        f"train loss {epoch.train_loss:.4f} acc {epoch.train_accuracy:.3f}  "
        f"val loss {epoch.val_loss:.4f} acc {epoch.val_accuracy:.3f} auc {auc} {'*' if is_best else ' '} "
        f"lr {epoch.learning_rate:.1e}  {epoch.seconds:.1f} s{speed}"
    )


class Notes:
    """What there is to say of the data, on standard error."""

    def on_start(self, plan: Plan) -> None:
        for note in plan.notes:
            with suppress(OSError):  # where it is full or gone, the training goes on
                print(f"note: {shown(note)}", file=sys.stderr, flush=True)

    def on_step(self, epoch: int, step: int, loss: float) -> None:
        """Nothing."""

    def on_epoch(self, epoch: Epoch, is_best: bool) -> None:
        """Nothing."""


class LineProgress:
    """One plain line for each epoch."""

    def __init__(self, write: Callable[[str], object], plan: bool = True) -> None:
        self._write, self._shows_plan = write, plan
        self._epochs = 0

    def on_start(self, plan: Plan) -> None:
        self._epochs = plan.epochs
        for line in describe_plan(plan) if self._shows_plan else ():
            self._write(line)

    def on_step(self, epoch: int, step: int, loss: float) -> None:
        """Steps are not shown."""

    def on_epoch(self, epoch: Epoch, is_best: bool) -> None:
        self._write(describe_epoch(epoch, self._epochs, is_best))


class BarProgress:
    """Two bars, of the run and of the running epoch, below the lines of the finished epochs.

    A context manager: it owns the terminal's last lines while it is entered.
    """

    def __init__(self, console: Console, plan: bool = True) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description:>6}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._run = self._progress.add_task("epochs", total=None, note="")
        self._epoch = self._progress.add_task("steps", total=None, note="")
        self._epochs = self._steps = 0
        self._shows_plan = plan

    def __enter__(self) -> BarProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def on_start(self, plan: Plan) -> None:
        self._epochs, self._steps = plan.epochs, plan.steps
        self._progress.update(self._run, total=plan.epochs, completed=plan.done)
        self._progress.update(self._epoch, total=plan.steps)
        for line in describe_plan(plan) if self._shows_plan else ():
            self._progress.console.print(line, highlight=False, markup=False)

    def on_step(self, epoch: int, step: int, loss: float) -> None:
        self._progress.update(self._epoch, completed=step, note=f"loss {loss:.4f}")

    def on_epoch(self, epoch: Epoch, is_best: bool) -> None:
        line = describe_epoch(epoch, self._epochs, is_best)
        self._progress.console.print(line, style="bold" if is_best else None, highlight=False, markup=False)
        self._progress.update(self._run, completed=epoch.number)
        self._progress.reset(self._epoch, total=self._steps)


class TensorBoardProgress:
    """Scalars for TensorBoard, in the ``tensorboard`` folder of the run.

    A context manager: it owns the file of events.

    Raises:
        BackendError: the package ``tensorboard`` is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BackendError(
                "TensorBoard's curves need a package that is not installed: pip install tensorboard"
            ) from error
        self._open: Callable[..., Any] = SummaryWriter
        self._writer: Any = None
        self._steps = 0

    def __enter__(self) -> TensorBoardProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def on_start(self, plan: Plan) -> None:
        self._steps = plan.steps
        # Steps of an epoch that a kill cut off are written again.
        self._writer = self._open(str(plan.run / "tensorboard"), purge_step=plan.done * plan.steps + 1)

    def on_step(self, epoch: int, step: int, loss: float) -> None:
        self._writer.add_scalar("loss/step", loss, (epoch - 1) * self._steps + step)

    def on_epoch(self, epoch: Epoch, is_best: bool) -> None:
        step = epoch.number * self._steps
        scalars = {
            "loss/train": epoch.train_loss,
            "loss/val": epoch.val_loss,
            "accuracy/train": epoch.train_accuracy,
            "accuracy/val": epoch.val_accuracy,
            "auc/val": epoch.val_auc,
            "learning_rate": epoch.learning_rate,
            "images_per_second": epoch.images_per_second,
        }
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()


@contextmanager
def shown_on(
    console: Console, tensorboard: bool = False, is_first: bool = True, plan: bool = True
) -> Iterator[list[Listener]]:
    """The listeners of a command: bars on a terminal, plain lines elsewhere, TensorBoard if asked for.

    Only the first of several processes has any. Without ``plan``, what the run is about to do is not shown.

    Raises:
        BackendError: TensorBoard is asked for and not installed.
        TargetError: standard output cannot be written, while a listener writes it.
    """
    with ExitStack() as stack:
        listeners: list[Listener] = []
        if not is_first:
            yield listeners
            return
        if plan:
            listeners.append(Notes())
        if tensorboard:
            listeners.append(stack.enter_context(TensorBoardProgress()))
        if console.is_terminal:
            listeners.append(stack.enter_context(BarProgress(console, plan)))
        else:

            def print_line(line: str) -> None:
                with suppress(OSError) if console.stderr else standard_output():  # as of notes
                    print(line, file=console.file, flush=True)

            listeners.append(LineProgress(print_line, plan))
        yield listeners
