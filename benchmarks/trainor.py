"""The trainor against a bare loop: same network, loss, optimizer and tensors in memory.

    python benchmarks/trainor.py

A step of ours is everything `fit` does for it: sampler, batch, finite-loss check, schedule, log,
health of the embeddings, progress bar. A step of theirs is what one would write by hand. They take
turns, step by step, in one process and one thread; the first three of each do not count.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from pairs import console, sized, verdict

from vilmedic_ssl import build
from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.data.loader import EpochBatches, Loader
from vilmedic_ssl.executors.run import Run
from vilmedic_ssl.executors.settings import TrainorSettings
from vilmedic_ssl.executors.trainor import Trainor
from vilmedic_ssl.executors.validator import Validator

NETWORKS = sized({"test_resnet": 64, "resnet18": 32}, {"test_resnet": 4})  # images per batch
STEPS, WARM = sized(43, 6), 3
TAU = 0.2


class InMemory(MedicalDataset):
    """Views of each image, and what else a batch holds, made before the clock starts."""

    split = "train"

    def __init__(self, **parts: torch.Tensor):
        self.parts, self.ids = parts, [str(i) for i in range(len(parts["images"]))]

    def item(self, index: int, seed: int) -> dict:
        return {name: part[index] for name, part in self.parts.items()}


class Bare:
    """The loop one would write by hand; `step` is one turn of it."""

    def __init__(self, backbone: str, images: torch.Tensor, batch: int):
        self.model = model_of(backbone).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=1e-4)
        self.images, self.batches = images, iter(torch.randperm(len(images)).split(batch))

    def step(self) -> None:
        rows = next(self.batches)
        views = self.images[rows].transpose(0, 1).flatten(0, 1)
        z = F.normalize(self.model.projection(self.model.cnn(views).flatten(1)), dim=1)
        logits = z @ z.T / TAU
        logits.fill_diagonal_(float("-inf"))
        partner = torch.arange(len(z)).roll(len(rows))
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, partner).backward()
        self.optimizer.step()


class Turns(Loader):
    """Hands out batches; between two of them the bare loop has its turn. Both are timed."""

    bare = None

    def epoch(self, epoch: int, position: int = 0) -> Iterator[dict]:
        self.ours, self.theirs = [], []
        begin = time.perf_counter()
        for batch in super().epoch(epoch, position):
            yield batch
            self.ours.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            if self.bare is not None:
                self.bare.step()
                self.theirs.append(time.perf_counter() - begin)
            begin = time.perf_counter()


def model_of(backbone: str):
    torch.manual_seed(0)
    cnn = {"proto": "CNN", "backbone": backbone, "in_chans": 1}
    return build({"proto": "SimCLR", "cnn": cnn, "loss": {"tau": TAU}})


def trained(model, data: InMemory, batch: int, bare=None) -> Turns:
    """One epoch of ours, taking turns with the steps of `bare`."""
    settings = TrainorSettings(
        optim_params={"lr": 1e-3, "weight_decay": 1e-4}, batch_size=batch, epochs=1, eval_start=2
    )
    sampler = EpochBatches(len(data), batch_size=batch, seed=0, shuffle=True)
    loader = Turns(data, sampler, workers=0, pin_memory=False)
    loader.bare = bare
    with tempfile.TemporaryDirectory() as folder:
        Trainor(
            Run(Path(folder), 0),
            settings,
            model,
            loader,
            Validator({}, [], torch.device("cpu")),
            lower_is_better=True,
            config={},
            data={},
            kept={"trained_on": data.members()},
        ).fit()
    return loader


def tensors(batch: int) -> torch.Tensor:
    return torch.randn(batch * STEPS, 2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def alone(side: str, backbone: str) -> None:
    """One side in this process; prints the largest resident set in MB."""
    images = tensors(NETWORKS[backbone])
    if side == "ours":
        trained(model_of(backbone), InMemory(images=images), NETWORKS[backbone])
    else:
        bare = Bare(backbone, images, NETWORKS[backbone])
        for _ in range(STEPS):
            bare.step()
    # not ru_maxrss, which a child inherits from the process that starts it
    status = Path("/proc/self/status").read_text()
    console.result(f"{int(status.split('VmHWM:')[1].split()[0]) / 1024:.0f}")


def peak_mb(side: str, backbone: str) -> str:
    command = [sys.executable, __file__, side, backbone]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"{int(done.stdout.split()[-1]):,}"


def main() -> None:
    torch.set_num_threads(1)  # two threads wait for each other whenever something else runs
    if len(sys.argv) == 3:
        return alone(*sys.argv[1:])
    rows = []
    for backbone, batch in NETWORKS.items():
        images = tensors(batch)
        bare = Bare(backbone, images, batch)
        turns = trained(model_of(backbone), InMemory(images=images), batch, bare)
        ours, theirs = turns.ours[WARM:], turns.theirs[WARM : len(turns.ours)]
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        speeds = [f"{batch / statistics.median(times):.0f}" for times in (ours, theirs)]
        told = *speeds, len(ours), f"{ratio:.3f}", verdict(ratio, 0.97)
        memory = peak_mb("ours", backbone), peak_mb("theirs", backbone)
        rows.append((f"{backbone}, batch {batch}", *told, *memory))
    speed = ("images/s", "bare loop", "pairs of steps", "ratio", "goal")
    header = ("network, 64 px", *speed, "peak MB", "bare loop MB")
    console.result(console.table(header, rows))


if __name__ == "__main__":
    main()
