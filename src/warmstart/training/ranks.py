"""Several processes that make one training: what they tell each other.

``torchrun --nproc-per-node=N -m warmstart train …`` starts N ranks. Each computes its share of an update's batches; the
gradients are summed, so that all make the same update of the same weights. Rank 0 alone writes and evaluates.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from warmstart.errors import ConfigError, Interrupted, TrainingError, WarmstartError
from warmstart.storage.processes import rank as own_rank
from warmstart.storage.processes import world_size
from warmstart.training.signals import ASKED

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

BUCKET = 1 << 24  # gradients that are summed in one message: 64 MiB
MEETING = timedelta(minutes=10)  # until all ranks have found each other
WAITING = timedelta(days=7)  # for rank 0's evaluation, say; a rank that ends is noticed at once
_MOMENT = 1.0  # seconds for the rank that failed to say so, before whoever started the ranks ends the others
_IN_BRACKETS = re.compile(r"\[[^]]*\] ")  # where in gloo's sources an error was found
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")


class Ranks:
    """This process among ``size`` of them, numbered from 0; by default one alone, which sends nothing.

    ``network`` is ``torch.distributed`` after they have met, and ``store`` what they met at. Every method is to be
    called by all ranks, in the same order. What other ranks failed with ends this one:

    Raises:
        TrainingError: another rank failed or ended.
    """

    def __init__(self, rank: int = 0, size: int = 1, network: Any = None, store: Any = None) -> None:
        self.rank, self.size, self._network, self._store = rank, size, network, store

    @property
    def first(self) -> bool:
        """Whether this one writes, evaluates and says what there is to say."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks, in float64."""
        if self.size == 1:
            return list(values)
        import torch

        total = torch.tensor(values, dtype=torch.float64)
        self._call("all_reduce", total)
        return [float(value) for value in total]

    def share(self, value: T) -> T:
        """Rank 0's value."""
        box = [value]
        if self.size > 1:
            self._call("broadcast_object_list", box, 0, device="cpu")
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._call("all_gather_object", values, value)
        return values

    def wait(self) -> None:
        """Until all ranks have come here."""
        self.gather(None)

    def signal(self, caught: signal.Signals | None) -> signal.Signals | None:
        """A signal that some rank has caught; SIGTERM where there are several."""
        counts = self.sum([float(caught == number) for number in ASKED])
        return next((number for number, count in zip(ASKED, counts, strict=True) if count), None)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Every gradient becomes the sum over all ranks; None where no rank has one."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for start, stop in buckets([p.numel() for p in trained], BUCKET):
            self._sum_bucket(trained[start:stop])

    def _sum_bucket(self, parameters: Sequence[Tensor]) -> None:
        import torch

        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = torch.tensor([float(p.grad is not None) for p in parameters]).to(gradients[0])
        flat = torch.cat([*(g.reshape(-1) for g in gradients), there])
        self._call("all_reduce", flat)
        *sums, counts = torch.split(flat, [*(p.numel() for p in parameters), len(parameters)])
        for parameter, gradient, total, count in zip(parameters, gradients, sums, counts.tolist(), strict=True):
            parameter.grad = gradient.copy_(total.view_as(gradient)) if count else None

    def require_same(self, tensors: Sequence[Tensor], where: str) -> None:
        """Raises ``TrainingError``: the sum of the bits of float32 ``tensors`` is not that of the other ranks."""
        if self.size == 1:
            return
        import torch

        found = self.gather(sum(int(t.detach().view(torch.int32).sum(dtype=torch.int64)) for t in tensors))
        other = [str(rank) for rank, value in enumerate(found) if value != found[0]]
        if other:
            raise TrainingError(
                "the ranks do not have the same weights",
                where=where,
                found=f"those of rank {', '.join(other)} differ from those of rank 0",
                todo="run all ranks on processors of one kind, with the same versions of libraries",
            )

    def _call(self, name: str, *arguments: Any, **options: Any) -> None:
        try:
            getattr(self._network, name)(*arguments, **options)
        except RuntimeError as error:
            raise self._lost(error) from None

    def _lost(self, error: RuntimeError) -> TrainingError:
        """What an exchange that broke off means."""
        said = None
        with contextlib.suppress(RuntimeError):
            until = time.monotonic() + _MOMENT
            while not (known := self._store.check(["failure"])) and time.monotonic() < until:
                time.sleep(0.05)
            said = self._store.get("failure").decode() if known else None
        if said is not None:
            return TrainingError("another rank failed", found=said)
        return TrainingError(
            "another rank ended without saying why",
            found=_IN_BRACKETS.sub("", str(error)).partition(". ")[0],
            todo="look for what ended it (memory, a lost machine); the same command goes on from the latest checkpoint",
        )

    def failed(self, error: BaseException) -> None:
        """Let the other ranks know; of all errors the first is said, with its rank, and the others are silent."""
        if not self.first:  # what is wrong on all ranks is rank 0's to say
            time.sleep(_MOMENT / 4)
        first = False
        with contextlib.suppress(RuntimeError):  # whoever keeps the store may have ended
            if first := self._store.add("failures", 1) == 1:
                self._store.set("failure", f"rank {self.rank}: {error or type(error).__name__}")
        if isinstance(error, WarmstartError):
            error.rank, error.elsewhere = self.rank, not first
        if not first:
            time.sleep(_MOMENT)


def buckets(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive parts with a sum of at most ``limit``, or of one that is larger."""
    found: list[tuple[int, int]] = []
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            found.append((start, i))
            start, total = i, 0
        total += size
    return [*found, (start, len(sizes))] if sizes else []


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """All processes that were started together; one alone where nothing says that there are more.

    Inside, an error of one rank ends all, and one of them says it.

    Raises:
        ConfigError: the environment does not say where the ranks meet.
    """
    if world_size() == 1:
        yield Ranks()
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # not of connections that end with a rank: that is said here

    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if missing := [name for name in _ADDRESS if not os.environ.get(name)]:
        raise ConfigError(
            f"WORLD_SIZE says that there are {world_size()} processes, but not where they meet",
            found=f"{', '.join(missing)} not set",
            todo="start them with torchrun, or unset WORLD_SIZE",
        )
    store, rank, size = next(rendezvous("env://", timeout=MEETING))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun that starts ranks again keeps the store, with addresses
        store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAITING)
    ranks = Ranks(rank, size, dist, store)
    if not ranks.first:
        logging.getLogger("warmstart").setLevel(logging.ERROR)
    try:
        yield ranks
        ranks.wait()
    except Interrupted as stop:  # all ranks are
        stop.elsewhere = not ranks.first
        raise
    except BaseException as error:
        ranks.failed(error)
        raise
    finally:
        dist.destroy_process_group()


def alone(what: str, todo: str) -> None:
    """Raises ``ConfigError``: ``what`` is not for several processes."""
    if world_size() > 1:
        error = ConfigError(f"{what} takes one process", found=f"{world_size()} processes", todo=todo)
        error.elsewhere = own_rank() > 0
        raise error


def check_share(accumulation: int, size: int) -> None:
    """Raises ``ConfigError``: the batches of an update cannot be dealt out evenly."""
    if accumulation % size:
        raise ConfigError(
            f"the batches of an update cannot be dealt out to {size} processes",
            where="training.accumulation",
            expected=f"a multiple of {size}",
            found=accumulation,
            todo=f"set training.accumulation={-(-accumulation // size) * size}; an update then has so many batches, "
            "with any number of processes",
        )


def in_turn(ranks: Ranks, make: Callable[[], T]) -> T:
    """What ``make`` returns on each rank; rank 0 makes it first, so that the others find what it keeps on disk."""
    if ranks.first:
        made = make()
        ranks.wait()
        return made
    ranks.wait()
    return make()
