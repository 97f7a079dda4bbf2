"""Peak memory of one SimCLR batch of 4,096 in chunks of 32, beside a batch of 32.

    python benchmarks/memory.py [backbone]

Each in a process of its own: one forward and backward pass of the trainor over pairs of grey views
of 64 px, made in place. Measured is how far the resident set grows at most beyond that of a process
with everything imported and the network built; gradients are in it, an optimizer is not.
"""

import contextlib
import subprocess
import sys
from pathlib import Path

import torch
from pairs import console, verdict

from vilmedic_ssl import build
from vilmedic_ssl.executors import gradient_cache

LARGE, CHUNK, SIZE = 4096, 32, 64
GOAL = 1.3


def resident(key: str) -> float:
    """MB of this process, now (VmRSS) or at most (VmHWM); ru_maxrss would include the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def step(model: torch.nn.Module, n: int) -> None:
    images = torch.empty(n, 2, 1, SIZE, SIZE).normal_()
    gradient_cache.backward(
        model, {"images": images}, chunk=CHUNK, cast=contextlib.nullcontext, scale=lambda x: x
    )


def alone(backbone: str, n: int) -> None:
    """Prints how many MB the batch takes beyond what the process had before."""
    torch.manual_seed(0)
    small = {"stem": "small"} if backbone == "resnet18" else {}
    cnn = {"proto": "CNN", "backbone": backbone, "in_chans": 1, **small}
    model = build({"proto": "SimCLR", "cnn": cnn, "forward_batch_size": CHUNK}).train()
    before = resident("VmRSS")
    step(model, n)
    console.result(f"{resident('VmHWM') - before:.1f}")


def growth(backbone: str, n: int) -> float:
    command = [sys.executable, __file__, backbone, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) == 3:
        return alone(sys.argv[1], int(sys.argv[2]))
    rows = []
    for backbone in sys.argv[1:] or ["test_resnet", "resnet18"]:
        small, large = (growth(backbone, n) for n in (CHUNK, LARGE))
        pixels = LARGE * 2 * SIZE**2 * 4 / 2**20
        ratio = (large - pixels) / small
        told = (f"{mb:.0f}" for mb in (small, large, pixels))
        rows.append((backbone, *told, f"{ratio:.2f}", verdict(ratio, GOAL, least=False)))
    batches = f"batch {CHUNK}, MB", f"batch {LARGE:,}, MB"
    header = ("network", *batches, "its pixels", "(large - pixels) / small", "goal")
    console.result(console.table(header, rows))


main()
