"""Training views per second and core, from files on disk to batches, against torchvision.

    python benchmarks/input.py [--profile]

Ours: `ImageFolder` with `cache: true`, in one grey channel and in three. Theirs: the usual SimCLR
input of torchvision (PIL, three channels, the file opened each time). Crop, flip, brightness,
contrast and blur have the same distribution on both sides; saturation, hue and the grey step
change nothing in grey pictures, so one channel leaves them out.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from pairs import compare, console, sized, verdict
from PIL import Image
from torch.utils.data import DataLoader

from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.image_folder import ImageFolder
from vilmedic_ssl.data.loader import EpochBatches, Loader
from vilmedic_ssl.data.transforms import Transform

COUNT, BATCH = sized((128, 32), (20, 4))
SIZES = sized(((512, 224), (96, 64)), ((96, 64),))  # pixels of a file, of a view


def draw_files(folder: Path, side: int) -> None:
    """Smooth random pictures, as large as films when stored as PNG."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        small = Image.fromarray(rng.integers(0, 255, (side // 8, side // 8), dtype=np.uint8))
        noise = rng.normal(0, 2, (side, side))
        film = np.asarray(small.resize((side, side), Image.BICUBIC)) + noise
        Image.fromarray(film.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04d}.png")


class Theirs(torch.utils.data.Dataset):
    """Two views of each file as SimCLR implementations make them with torchvision."""

    def __init__(self, folder: Path, crop: int):
        from torchvision import transforms as T

        kernel = max(3, crop // 10 | 1)
        self.files = sorted(folder.iterdir())
        self.views = T.Compose(
            [
                T.RandomResizedCrop(crop),
                T.RandomHorizontalFlip(),
                T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
                T.RandomGrayscale(0.2),
                T.RandomApply([T.GaussianBlur(kernel, (0.1, 2.0))], p=0.5),
                T.ToTensor(),
                T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(self.files[index]) as image:
            colour = image.convert("RGB")
        return self.views(colour), self.views(colour)


def ours(folder: Path, side: int, crop: int, channels: str) -> Loader:
    keys = {"resize": side, "crop": crop, "views": 2, "channels": channels}
    transform = Transform(**keys, train="simclr-natural", cache=True)
    context = Context("train", augment=True)
    data = ImageFolder(context, root=str(folder), fractions={"train": 1.0}, transform=transform)
    assert len(data) == COUNT
    batches = EpochBatches(len(data), batch_size=BATCH, seed=0, shuffle=True)
    return Loader(data, batches, workers=0, pin_memory=False)


def views_per_second(passes: Callable[[], Iterable]) -> float:
    """Over as many passes as fill half a second (a twentieth at toy size)."""
    views, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < sized(0.5, 0.05):
        seen = sum(1 for _ in passes())
        assert seen == COUNT // BATCH
        views += 2 * COUNT
    return views / spent


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for side, crop in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            draw_files(Path(folder), side)
            theirs = DataLoader(Theirs(Path(folder), crop), batch_size=BATCH, shuffle=True)
            for channels in ("gray", "rgb"):
                mine = ours(Path(folder), side, crop, channels)
                console.say(f"{side} -> {crop}, {channels}")
                a, b, ratio = compare(
                    lambda m=mine: views_per_second(lambda: m.epoch(1)),
                    lambda t=theirs: views_per_second(lambda: t),
                )
                goal = verdict(ratio, 5) if channels == "gray" else ""
                rows.append(
                    (f"{side} -> {crop}", channels, f"{a:,.0f}", f"{b:,.0f}", f"{ratio:.1f}", goal)
                )
                if "--profile" in sys.argv:
                    profile(mine)
    header = ("pixels", "channels", "views/s/core", "torchvision", "ratio", "goal")
    console.result(console.table(header, rows))


def profile(loader: Loader) -> None:
    """Where the time of our side goes."""
    import cProfile
    import io
    import pstats

    watch = cProfile.Profile()
    watch.runcall(lambda: views_per_second(lambda: loader.epoch(1)))
    text = io.StringIO()
    pstats.Stats(watch, stream=text).sort_stats("tottime").print_stats(14)
    console.result(text.getvalue())


if __name__ == "__main__":
    main()
