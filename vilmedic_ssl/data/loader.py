"""A loader whose position is two integers: what sample n of epoch e looks like depends on (seed,
e, n) alone.

So a resumed run sees the same batches as an uninterrupted one, with any number of workers or ranks.
"""

from __future__ import annotations

import atexit
import hashlib
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.data.workers import leave_signals
from vilmedic_ssl.errors import UserError, own_words

Batch = dict[str, Any]


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A 63-bit seed for one sample of one epoch."""
    text = f"{seed}/{epoch}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def batches_of(order: list[int], size: int, *, ranks: int, drop_last: bool) -> list[list[int]]:
    """Cut an order into batches of `size`.

    A tail shorter than an eighth of a batch joins the batch before it: alone its contrastive loss
    would be noise. So does a single image, of which batch norm has no statistics, and a tail too
    short for the ranks, which changes a run only where there are more ranks than an eighth of the
    batch.
    """
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    if len(batches) > 1 and len(batches[-1]) < size:
        if drop_last:
            batches.pop()
        elif len(batches[-1]) < max(2, ranks, size / 8):
            tail = batches.pop()
            batches[-1] = batches[-1] + tail
    return batches


def steps_of(n: int, size: int, *, ranks: int = 1, drop_last: bool = False) -> int:
    """Batches that `batches_of` cuts an epoch of `n` samples into."""
    return len(batches_of(list(range(n)), size, ranks=ranks, drop_last=drop_last))


def even_batches(order: list[int], size: int, *, ranks: int) -> list[list[int]]:
    """As few batches as `size` allows, equal up to one sample, so that their losses compare; none
    smaller than the number of ranks, nor of a single image unless `size` is 1.
    """
    count = max(1, min(-(-len(order) // size), len(order) // max(ranks, min(2, size))))
    return [share(order, i, count) for i in range(count)]


def share(batch: list[int], rank: int, ranks: int) -> list[int]:
    """The contiguous part `rank` of `ranks` of a list; sizes differ by at most one."""
    base, extra = divmod(len(batch), ranks)
    begin = rank * base + min(rank, extra)
    return batch[begin : begin + base + (rank < extra)]


def balanced_order(classes: np.ndarray, generator: torch.Generator) -> list[int]:
    """As many draws as there are samples, in random order, every class equally often up to one.

    Inside a class no sample is drawn once more before all others were: rare classes repeat theirs,
    of frequent ones another part comes in each epoch.

    Args:
        classes: (N,) integers from 0.

    Returns:
        N numbers, sample + N * times it was drawn before.
    """
    n = len(classes)
    members = [torch.from_numpy(np.flatnonzero(classes == c)) for c in np.unique(classes)]
    more = set(torch.randperm(len(members), generator=generator)[: n % len(members)].tolist())
    drawn = []
    for k, rows in enumerate(members):
        quota = n // len(members) + (k in more)
        rounds = range(-(-quota // len(rows)))
        each = [rows[torch.randperm(len(rows), generator=generator)] + n * r for r in rounds]
        drawn.append(torch.cat(each)[:quota])
    order = torch.cat(drawn)
    return order[torch.randperm(n, generator=generator)].tolist()


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (index, sample seed) for one rank, from any position of any epoch.

    Args:
        n: number of samples.
        batch_size: global batch over all ranks.
        shuffle: a new order per epoch; False, for evaluation, keeps the order and the seeds of
            epoch 0 and makes the batches equal in size.
        classes: the class of each sample, from 0; then each epoch draws `n` times, every class
            equally often.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
        classes: np.ndarray | None = None,
    ):
        self.classes = classes
        self.n, self.batch_size, self.seed, self.shuffle = n, batch_size, seed, shuffle
        self.drop_last, self.rank, self.ranks = drop_last, rank, ranks
        self.epoch, self.position = 0, 0

    def batches(self, epoch: int) -> list[list[int]]:
        """The global batches of an epoch, as draws: sample number + n * times it was drawn before,
        which gives each draw a seed of its own.
        """
        order = list(range(self.n))
        if not self.shuffle:
            return even_batches(order, self.batch_size, ranks=self.ranks)
        generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, -1))
        if self.classes is None:
            order = torch.randperm(self.n, generator=generator).tolist()
        else:
            order = balanced_order(self.classes, generator)
        return batches_of(order, self.batch_size, ranks=self.ranks, drop_last=self.drop_last)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.batches(0))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch if self.shuffle else 0
        for batch in self.batches(epoch)[self.position :]:
            part = share(batch, self.rank, self.ranks)
            yield [(draw % self.n, sample_seed(self.seed, epoch, draw)) for draw in part]


class Loader:
    """Batches of a dataset, resumable at (epoch, position).

    Args:
        workers: processes that read ahead; 0 reads in the training process.
    """

    def __init__(
        self, dataset: MedicalDataset, sampler: EpochBatches, *, workers: int, pin_memory: bool
    ):
        self.dataset, self.sampler = dataset, sampler
        dataset.ready(workers)  # before workers are forked, so that they share it
        self._loader: DataLoader[Batch] = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=dataset.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=pin_memory,
            # without one of its own, every iter() would draw from the global generator
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=leave_signals,
        )
        _open.add(self)

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, position: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (from 1) that come after the first `position` ones."""
        self.sampler.epoch, self.sampler.position = epoch, position
        try:
            yield from self._loader
        except UserError as error:  # from a worker it comes wrapped in the worker's traceback
            self.close()  # left to the garbage collector, its queues may go before its workers
            raise UserError(own_words(error)) from None

    def close(self) -> None:
        """End the workers."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            self._loader._iterator = None


_open: weakref.WeakSet[Loader] = weakref.WeakSet()


@atexit.register
def close_all() -> None:
    """Python ends its child processes by one SIGTERM, which ours ignore, and would wait forever
    for the workers of a loader that something (a kept traceback, say) still holds.
    """
    for loader in list(_open):
        loader.close()
