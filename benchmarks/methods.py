"""Step time and peak memory of every image-only method beside lightly's parts in a bare loop.

    python benchmarks/methods.py [--threads 2] [--pairs 7] [method ...]

Both do the same work: one encoder (ResNet-18 with small stem, ViT-Tiny), heads of the same widths
and weights, 64 pairs of grey views of 64 px (DINO: four crops of 32 px more; MAE: one view), AdamW,
tensors in memory. A step of ours is a step of the trainor with everything `fit` does for it; a step
of theirs is what lightly's example does. They take turns, step by step, in one process. Memory is
each alone in a process: how far the resident set grows at most beyond imports and data.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
from pairs import console, resident, sized, verdict
from peers import Theirs
from trainor import InMemory, trained
from twins import METHODS, batch_of, twins

BATCH, WARM, TAU = sized(64, 4), 2, 0.996
MEMORY_STEPS = 3


class Bare:
    """lightly's loop; `step` is one turn of it."""

    def __init__(self, model: Theirs, parts: dict[str, torch.Tensor]):
        self.model, self.parts, self.count = model, parts, 0
        learnt = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learnt, lr=1e-3, weight_decay=1e-4)
        self.batches = iter(torch.randperm(len(parts["images"])).split(BATCH))

    def step(self) -> None:
        rows = next(self.batches)
        self.model.follow(TAU)
        loss = self.model.loss(**{name: part[rows] for name, part in self.parts.items()})
        self.optimizer.zero_grad()
        loss.backward()
        self.model.before_step(self.count)
        self.optimizer.step()
        self.count += 1


def parts_of(name: str, steps: int) -> dict[str, torch.Tensor]:
    """What a batch of the method holds, `steps` batches of it."""
    parts = batch_of(BATCH * steps, 1 if name == "MAE" else 2)
    kept = ("images", "local") if name.startswith("DINO") else ("images",)
    return {key: parts[key] for key in kept}


def times(name: str, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of each step, ours and theirs."""
    parts = parts_of(name, pairs + WARM + 1)  # `fit` ends before the last is timed
    ours, theirs = twins(name)
    turns = trained(ours, InMemory(**parts), BATCH, Bare(theirs, parts))
    return turns.ours[WARM:], turns.theirs[WARM : len(turns.ours)]


def alone(side: str, name: str) -> None:
    """One side in this process; prints how many MB it takes at most."""
    parts = parts_of(name, MEMORY_STEPS)
    before = resident("VmRSS")
    ours, theirs = twins(name)
    if side == "ours":
        del theirs
        trained(ours, InMemory(**parts), BATCH)
    else:
        del ours
        bare = Bare(theirs, parts)
        for _ in range(MEMORY_STEPS):
            bare.step()
    console.result(f"{resident('VmHWM') - before:.0f}")


def peak(side: str, name: str, threads: int) -> float:
    command = [sys.executable, __file__, name, "--alone", side, "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*", default=sized(METHODS, METHODS[:1]))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=sized(7, 2))
    parser.add_argument("--alone", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.alone:
        return alone(given.alone, given.methods[0])
    rows = []
    for name in given.methods:
        begin = time.perf_counter()
        ours, theirs = times(name, given.pairs)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        seconds = [f"{statistics.median(found):.2f}" for found in (ours, theirs)]
        mine, yours = (peak(side, name, given.threads) for side in ("ours", "theirs"))
        told = f"{ratio:.3f}", verdict(ratio, 1.0, least=False), f"{mine:,.0f}", f"{yours:,.0f}"
        rows.append((name, *seconds, *told))
        console.say(f"{name}: {rows[-1][1:]}, in {time.perf_counter() - begin:.0f} s")
    header = ("method", "s/step", "lightly", "ratio", "goal", "peak MB", "lightly MB")
    console.result(console.table(header, rows))


if __name__ == "__main__":
    main()
