"""Peak memory of one SimCLR batch of 4,096 in chunks of 32, beside a batch of 32.

    python benchmarks/memory.py [backbone]

Each in a process of its own: one forward and backward pass of the trainor over pairs of grey views
of 64 px, made in place; gradients are in it, an optimizer is not. The goal is for the largest
resident set of the process; what the batch adds to a process with everything imported and the
network built stands beside it, a stricter measure that a small network's fragments blur.
"""

import contextlib
import subprocess
import sys

import torch
from pairs import console, resident, sized, verdict

from vilmedic_ssl import build
from vilmedic_ssl.executors import gradient_cache

LARGE, CHUNK, SIZE = sized((4096, 32, 64), (8, 4, 64))
GOAL = 1.3


def step(model: torch.nn.Module, n: int) -> None:
    images = torch.empty(n, 2, 1, SIZE, SIZE).normal_()
    gradient_cache.backward(
        model, {"images": images}, chunk=CHUNK, cast=contextlib.nullcontext, scale=lambda x: x
    )


def alone(backbone: str, n: int) -> None:
    """Prints how many MB the process takes at most, and how many before the batch."""
    torch.manual_seed(0)
    small = {"stem": "small"} if backbone == "resnet18" else {}
    cnn = {"proto": "CNN", "backbone": backbone, "in_chans": 1, **small}
    model = build({"proto": "SimCLR", "cnn": cnn, "forward_batch_size": CHUNK}).train()
    before = resident("VmRSS")
    step(model, n)
    console.result(f"{resident('VmHWM'):.1f} {before:.1f}")


def peak(backbone: str, n: int) -> tuple[float, float]:
    """MB at most, and MB added by the batch."""
    command = [sys.executable, __file__, backbone, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    most, before = map(float, done.stdout.split()[-2:])
    return most, most - before


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) == 3:
        return alone(sys.argv[1], int(sys.argv[2]))
    rows = []
    for backbone in sys.argv[1:] or sized(["test_resnet", "resnet18"], ["test_resnet"]):
        small, large = peak(backbone, CHUNK), peak(backbone, LARGE)
        pixels = LARGE * 2 * SIZE**2 * 4 / 2**20
        ratio, added = ((b - pixels) / a for a, b in zip(small, large, strict=True))
        told = f"{small[0]:.0f}", f"{large[0]:.0f}", f"{pixels:.0f}", f"{ratio:.2f}"
        beside = f"{small[1]:.0f}, {large[1]:.0f}: {added:.2f}"
        rows.append((backbone, *told, verdict(ratio, GOAL, least=False), beside))
    batches = f"batch {CHUNK}, MB", f"batch {LARGE:,}, MB"
    header = ("network", *batches, "its pixels", "(large - pixels) / small", "goal", "added")
    console.result(console.table(header, rows))


if __name__ == "__main__":
    main()
