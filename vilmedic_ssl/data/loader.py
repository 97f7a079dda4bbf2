"""A loader whose position is two integers: what sample n of epoch e looks like depends on (seed,
e, n) alone.

So a resumed run sees the same batches as an uninterrupted one, with any number of workers or ranks.
"""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.errors import UserError

Batch = dict[str, Any]
OURS = re.compile(r"^vilmedic_ssl\.errors\.\w+: ", re.MULTILINE)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A 63-bit seed for one sample of one epoch."""
    text = f"{seed}/{epoch}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def batches_of(order: list[int], size: int, *, ranks: int, drop_last: bool) -> list[list[int]]:
    """Cut an order into batches; a tail shorter than the number of ranks joins the batch before
    it.
    """
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    if len(batches) > 1 and len(batches[-1]) < size:
        if drop_last:
            batches.pop()
        elif len(batches[-1]) < ranks:
            tail = batches.pop()
            batches[-1] = batches[-1] + tail
    return batches


def share(batch: list[int], rank: int, ranks: int) -> list[int]:
    """The contiguous part of a global batch that one rank handles; sizes differ by at most one."""
    base, extra = divmod(len(batch), ranks)
    begin = rank * base + min(rank, extra)
    return batch[begin : begin + base + (rank < extra)]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (index, sample seed) for one rank, from any position of any epoch.

    Args:
        n: number of samples.
        batch_size: global batch over all ranks.
        shuffle: a new order per epoch; False keeps the order and the seeds of epoch 0.
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
    ):
        self.n, self.batch_size, self.seed, self.shuffle = n, batch_size, seed, shuffle
        self.drop_last, self.rank, self.ranks = drop_last, rank, ranks
        self.epoch, self.position = 0, 0

    def batches(self, epoch: int) -> list[list[int]]:
        """The global batches of an epoch, as sample numbers."""
        order = list(range(self.n))
        if self.shuffle:
            generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, -1))
            order = torch.randperm(self.n, generator=generator).tolist()
        return batches_of(order, self.batch_size, ranks=self.ranks, drop_last=self.drop_last)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        whole, tail = divmod(self.n, self.batch_size)
        keeps_tail = tail > 0 and (whole == 0 or not (self.drop_last or tail < self.ranks))
        return whole + keeps_tail

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch if self.shuffle else 0
        for batch in self.batches(epoch)[self.position :]:
            part = share(batch, self.rank, self.ranks)
            yield [(index, sample_seed(self.seed, epoch, index)) for index in part]


class Loader:
    """Batches of a dataset, resumable at (epoch, position).

    Args:
        workers: processes that read ahead; 0 reads in the training process.
    """

    def __init__(
        self, dataset: MedicalDataset, sampler: EpochBatches, *, workers: int, pin_memory: bool
    ):
        self.dataset, self.sampler = dataset, sampler
        self._loader: DataLoader[Batch] = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=dataset.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(
                0
            ),  # else every iter() draws from the global one
            worker_init_fn=_ignore_signals,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, position: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (from 1) that come after the first `position` ones."""
        self.sampler.epoch, self.sampler.position = epoch, position
        try:
            yield from self._loader
        except UserError as error:  # from a worker it comes wrapped in the worker's traceback
            raise UserError(OURS.split(str(error))[-1].strip()) from None


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM are for the training process, which saves first; its workers end with
    it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
