"""Training on several processes, one for each GPU or share of the CPU, with the result of one.

``torchrun`` starts the processes and says in the environment which of them this one is. What makes their
result that of one process, up to the order in which numbers are added:

- every batch is the one that a single process would draw, and each process takes a share of it (`Shards`);
- batch norm's statistics are those of the whole batch (`synchronise_batch_norms`);
- stochastic depth draws for the whole batch on every process and keeps its own images' (`DropPath`);
- losses are added up over images and divided by the whole batch's, so shares of unequal size weigh right;
- the first process alone decides (which epoch is the best, when to stop) and writes files.

Dims: B images of this process's share, C channels, H W a map's size, P processes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

from ...errors import BackendError, MsmambaError, TrainingError
from ..networks.family import Network
from ..networks.layers import DropPath
from ..networks.registry import family_of
from .loading import Key, ShuffledBatches

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: longer than one of them reads a data set or writes a checkpoint.
One that died is noticed at once, by its closed connections."""


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train together."""

    rank: int = 0
    """This process's number, from 0; the first one decides and writes."""
    count: int = 1
    """P."""
    on_machine: int = 1
    """How many of them are on this machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """The sums of the processes' values, the same on each."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(sums)
        return sums.tolist()

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks, on each."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def from_first(self, compute: Callable[[], T]) -> T:
        """What ``compute`` gives on the first process, on each; the others do not run it.

        Raises:
            MsmambaError: whatever it raised there, on the others as a TrainingError.
        """
        if self.count == 1:
            return compute()
        outcome: list[Any] = [None, None]
        failure: MsmambaError | OSError | None = None
        if self.is_first:
            try:
                outcome[0] = compute()
            except (MsmambaError, OSError) as error:
                failure, outcome[1] = error, str(error)
        distributed.broadcast_object_list(outcome, src=0)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise TrainingError(f"process {self.rank} of {self.count} stops with the first: {outcome[1]}")
        value: T = outcome[0]
        return value

    def replicate(self, network: Network) -> nn.Module:
        """The network to train: its gradients are averaged over the processes before they are seen."""
        if self.count == 1:
            return network
        synchronise_batch_norms(network)
        # Where every weight is in the forward pass, looking for others costs time, and PyTorch warns of it.
        some_unused = family_of(network).unused_parameters(network) > 0
        return DistributedDataParallel(
            network, find_unused_parameters=some_unused, gradient_as_bucket_view=True
        )


ALONE = Processes()


def averaging_gradients(network: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """A context for backward passes; until averaging is wanted, gradients only add up in each process."""
    if wanted or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


@contextmanager
def joined(device: str = "cpu") -> Iterator[tuple[Processes, str]]:
    """Joins the processes that ``torchrun`` started, for as long as the block runs.

    Args:
        device: ``cpu`` or ``cuda``; each process takes the GPU of its rank on its machine.

    Yields:
        This process's place, and its device. Without ``torchrun``, or with one process, it is alone.

    Raises:
        BackendError: one GPU was named for all, or there are fewer GPUs than processes.
        TrainingError: another process stopped, or could not be reached.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE, device
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    on_cuda = device.startswith("cuda")
    if on_cuda:
        device = _own_gpu(device, local, processes)
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=TIMEOUT)
        try:
            with warnings.catch_warnings():
                # Of weights with one channel a group, whose memory has several names for the same layout.
                warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
                yield processes, device
        finally:
            distributed.destroy_process_group()
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise TrainingError(
            f"process {processes.rank} of {count} lost the others ({_cause(error)}): one of them stopped, "
            f"and its own message says why; continue the run with --resume"
        ) from error


def _own_gpu(device: str, local: int, processes: Processes) -> str:
    if device != "cuda":
        raise BackendError(
            f"{processes.count} processes cannot share device {device!r}: give --device cuda, and each takes "
            f"its own; CUDA_VISIBLE_DEVICES chooses among them"
        )
    if processes.on_machine > torch.cuda.device_count():
        raise BackendError(
            f"{processes.on_machine} processes were started on a machine with {torch.cuda.device_count()} "
            f"GPUs: start as many as there are GPUs"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error tells of another process: gloo's have no type of their own."""
    said = str(error).lower()
    return isinstance(error, distributed.DistError) or any(
        words in said for words in ("gloo", "connection closed by peer", "connection reset", "nccl")
    )


def _cause(error: RuntimeError) -> str:
    """The sentence of a message that tells the cause: gloo's begin with a source line and end with advice."""
    return str(error).partition("] ")[2].partition(". ")[0] or str(error).splitlines()[0]


@dataclass(frozen=True)
class Part:
    """What this process takes of images that go through the network at the same time, on all processes."""

    whole: int
    """Images of all processes."""
    start: int
    stop: int
    """This process's, a range of them."""
    copies: int = 1
    """How often each image is there. Where there are fewer images than processes, each process takes all."""


class Shards(Sampler[list[Key]]):
    """This process's share of the batches of a single process, in parts for gradient accumulation.

    A batch is cut into parts, each part into shares, both as evenly as their numbers allow. Every part has
    at least two images: one alone has no variance for batch norm.

    Args:
        order: the batches of a single process.
        parts: how many parts a batch goes through in.
        processes: this one's place.
    """

    def __init__(self, order: ShuffledBatches, parts: int = 1, processes: Processes = ALONE) -> None:
        self.order = order
        self.steps = [_parts(size, parts, processes) for size in order.sizes]
        """The parts of each batch."""

    def __len__(self) -> int:
        return sum(len(parts) for parts in self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        for keys, parts in zip(self.order, self.steps, strict=True):
            first = 0
            for part in parts:
                yield keys[first + part.start : first + part.stop]
                first += part.whole


def _parts(size: int, parts: int, processes: Processes) -> list[Part]:
    return [_share(whole, processes) for whole in _evenly(size, max(1, min(parts, size // 2)))]


def _share(whole: int, processes: Processes) -> Part:
    if whole < processes.count:
        return Part(whole, 0, whole, copies=processes.count)
    sizes = _evenly(whole, processes.count)
    start = sum(sizes[: processes.rank])
    return Part(whole, start, start + sizes[processes.rank])


def _evenly(size: int, parts: int) -> list[int]:
    """Sizes of that many parts, the larger ones first."""
    return [size // parts + (number < size % parts) for number in range(parts)]


def dealt(batches: Sequence[T], processes: Processes) -> Sequence[T]:
    """This process's batches for evaluation: every P-th, so that each is what a single process would see."""
    return batches[processes.rank :: processes.count]


def collected(values: Sequence[T], processes: Processes) -> list[T]:
    """The inverse of `dealt`: one value for each batch of all processes, in the batches' order."""
    shares = processes.gather(list(values))
    return [
        shares[number % processes.count][number // processes.count]
        for number in range(sum(len(share) for share in shares))
    ]


def synchronise_batch_norms(network: nn.Module) -> None:
    """Puts a `SyncedBatchNorm` in the place of every batch norm; names and weights stay."""
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, SyncedBatchNorm.of(module))


def take(network: nn.Module, part: Part) -> None:
    """Tells a network which images of all will pass next: for stochastic depth and batch norm."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.share = (part.whole, part.start, part.stop)
        elif isinstance(module, SyncedBatchNorm):
            module.copies = part.copies


class SyncedBatchNorm(_BatchNorm):
    """Batch norm over the images of all processes: of maps, (B, C, H, W), or of vectors, (B, C).

    PyTorch's own knows CUDA only. This one is the same arithmetic on every device, so that what runs on
    several GPUs is what the tests run on several CPU processes.
    """

    copies = 1
    """How often each image is there, on different processes."""

    @classmethod
    def of(cls, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> SyncedBatchNorm:
        """Makes a norm with the weights and statistics of another, which are shared."""
        synced = cls(norm.num_features, norm.eps, norm.momentum)
        synced.weight, synced.bias = norm.weight, norm.bias
        synced.running_mean, synced.running_var = norm.running_mean, norm.running_var
        synced.num_batches_tracked = norm.num_batches_tracked
        return synced.train(norm.training)

    def _check_input_dim(self, x: Tensor) -> None:
        """Takes what either kind of norm takes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _SyncedNorm.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - self.copies))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        result: Tensor = y
        return result


class _SyncedNorm(torch.autograd.Function):
    """Normalises by the mean and variance of all processes' maps; both depend on every image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        channels = x.shape[1]
        count = x.numel() // channels
        own_variance, own_mean = torch.var_mean(
            x.float() if x.element_size() < 4 else x, (0, *range(2, x.ndim)), correction=0
        )
        own = torch.cat([own_mean, own_variance, own_mean.new_tensor([count])]).double()
        everyones = torch.empty(distributed.get_world_size(), own.numel(), dtype=own.dtype, device=x.device)
        distributed.all_gather(list(everyones.unbind()), own)
        means, variances, counts = everyones.split([channels, channels, 1], dim=1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean.to(weight), variance.to(weight), total)
        y = functional.batch_norm(x, mean.to(weight), variance.to(weight), weight, bias, eps=eps)
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, total = ctx.saved_tensors
        # In half precision the two parts of the gradient, and what they are made of, would each be rounded.
        grad, map_type = gradients[0], x.dtype
        if x.element_size() < 4:
            x, grad = x.float(), grad.float()
        # As if mean and variance were constants; what flows through them is added below.
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([dweight, dbias]).double()
        distributed.all_reduce(sums)
        of_normalised, of_plain = sums / total
        scale = weight.double() * torch.rsqrt(variance.double() + ctx.eps)
        slope = of_normalised * scale * torch.rsqrt(variance.double() + ctx.eps)
        offset = of_plain * scale - slope * mean
        by_channel = (1, -1, *(1,) * (x.ndim - 2))
        through = torch.addcmul(offset.to(x).view(by_channel), x, slope.to(x).view(by_channel))
        return dx.sub_(through).to(map_type), dweight, dbias, None
