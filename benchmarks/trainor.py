"""The trainor against a bare loop: same network, loss, optimizer and tensors in memory.

    python benchmarks/trainor.py [--profile]

Ours is everything `fit` does: sampler, batches, finite-loss check, schedule, log, health of the
embeddings, a checkpoint at the end of the epoch. Theirs is what one would write by hand.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from pairs import compare, console, verdict

from vilmedic_ssl import build
from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.data.loader import EpochBatches, Loader
from vilmedic_ssl.executors.run import Run
from vilmedic_ssl.executors.settings import TrainorSettings
from vilmedic_ssl.executors.trainor import Trainor
from vilmedic_ssl.executors.validator import Validator

NETWORKS = {"test_resnet": (64, 40), "resnet18": (32, 20)}  # images per batch, steps
TAU = 0.2


class InMemory(MedicalDataset):
    """Two views of each image, made before the clock starts."""

    split = "train"

    def __init__(self, images: torch.Tensor):
        self.images, self.ids = images, [str(i) for i in range(len(images))]

    def item(self, index: int, seed: int) -> dict:
        return {"images": self.images[index]}


def model_of(backbone: str):
    torch.manual_seed(0)
    cnn = {"proto": "CNN", "backbone": backbone, "in_chans": 1}
    return build({"proto": "SimCLR", "cnn": cnn, "loss": {"tau": TAU}})


def ours(backbone: str, images: torch.Tensor, batch: int) -> float:
    settings = TrainorSettings(
        optim_params={"lr": 1e-3, "weight_decay": 1e-4}, batch_size=batch, epochs=1, eval_start=2
    )
    data = InMemory(images)
    sampler = EpochBatches(len(data), batch_size=batch, seed=0, shuffle=True)
    loader = Loader(data, sampler, workers=0, pin_memory=False)
    with tempfile.TemporaryDirectory() as folder:
        trainor = Trainor(
            Run(Path(folder), 0),
            settings,
            model_of(backbone),
            loader,
            Validator({}, [], torch.device("cpu")),
            lower_is_better=True,
            config={},
            data={},
            trained_on=data.members(),
        )
        begin = time.perf_counter()
        trainor.fit()
        return len(images) / (time.perf_counter() - begin)


def theirs(backbone: str, images: torch.Tensor, batch: int) -> float:
    model = model_of(backbone).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    begin = time.perf_counter()
    order = torch.randperm(len(images))
    for rows in order.split(batch):
        views = images[rows].transpose(0, 1).flatten(0, 1)
        z = F.normalize(model.projection(model.cnn(views).flatten(1)), dim=1)
        logits = z @ z.T / TAU
        logits.fill_diagonal_(float("-inf"))
        partner = torch.arange(len(z)).roll(len(rows))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, partner).backward()
        optimizer.step()
    return len(images) / (time.perf_counter() - begin)


def tensors(batch: int, steps: int) -> torch.Tensor:
    return torch.randn(batch * steps, 2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def peak_mb(side: str, backbone: str) -> float:
    """Largest resident set of a process that does one side alone."""
    command = [sys.executable, __file__, side, backbone]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    torch.set_num_threads(1)  # two threads wait for each other whenever something else runs
    if len(sys.argv) == 3:
        side, backbone = sys.argv[1:]
        batch, steps = NETWORKS[backbone]
        {"ours": ours, "theirs": theirs}[side](backbone, tensors(batch, steps), batch)
        console.result(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")
        return
    rows = []
    for backbone, (batch, steps) in NETWORKS.items():
        images = tensors(batch, steps)
        console.say(f"{backbone}, batch {batch}, {steps} steps")
        a, b, ratio = compare(
            lambda i=images, n=backbone, s=batch: ours(n, i, s),
            lambda i=images, n=backbone, s=batch: theirs(n, i, s),
            rounds=5,
        )
        memory = f"{peak_mb('ours', backbone):,.0f}", f"{peak_mb('theirs', backbone):,.0f}"
        speed = f"{a:.0f}", f"{b:.0f}", f"{ratio:.3f}", verdict(ratio, 0.97)
        rows.append((f"{backbone}, batch {batch}", *speed, *memory))
        if "--profile" in sys.argv:
            profile(lambda i=images, n=backbone, s=batch: ours(n, i, s))
    header = ("network, 64 px", "images/s", "bare loop", "ratio", "goal", "peak MB", "bare loop MB")
    console.result(console.table(header, rows))


def profile(side) -> None:
    """Where the time of our side goes, outside the network."""
    import cProfile
    import io
    import pstats

    watch = cProfile.Profile()
    watch.runcall(side)
    text = io.StringIO()
    pstats.Stats(watch, stream=text).sort_stats("tottime").print_stats(14)
    console.result(text.getvalue())


main()
