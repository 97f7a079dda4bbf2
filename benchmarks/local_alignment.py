"""GLoRIA's loss beside the authors' formulation: time, peak memory and arithmetic of one step.

    python benchmarks/local_alignment.py [--threads 1] [--pairs 3]

Both take the same 48 images of 19 x 19 places and 48 texts of up to 97 words, 768 wide, float32,
and give the loss and all gradients. The authors' form goes text by text: its words beside every
image, attended vectors by a batched product, everything kept for the backward pass. They take turns
in one process; memory is each alone in a process: how far the resident set grows at most beyond the
inputs. "limit" is how long the counted products take at the rate of a large product, measured in
between. Reports are seldom as long as the limit of 97: "drawn" has a mean of about 30 words.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from pairs import console, resident, sized, verdict
from torch import Tensor
from torch.utils import flop_counter

from vilmedic_ssl.losses import gloria

BATCH, PLACES, WIDTH, WORDS = sized((48, 19, 768, 97), (3, 3, 16, 5))
WEIGHTS = {"local_loss_weight": 1.0, "global_loss_weight": 1.0}
TEMPERATURES = {"temp1": 4.0, "temp2": 5.0, "temp3": 10.0}


def inputs(lengths: str) -> tuple[list[Tensor], Tensor]:
    """Leaves (image, sentence, places, words) and how many words count."""
    torch.manual_seed(0)
    shapes = (WIDTH,), (WIDTH,), (WIDTH, PLACES, PLACES), (WIDTH, WORDS)
    leaves = [torch.randn(BATCH, *shape).mul_(0.3) for shape in shapes]
    leaves[3].mul_(0.5)
    drawn = torch.empty(BATCH).log_normal_(3.2, 0.6).round().clamp(3, WORDS).long()
    counts = drawn if lengths == "drawn" else torch.full((BATCH,), WORDS)
    return [leaf.requires_grad_() for leaf in leaves], counts


def ours(image: Tensor, sentence: Tensor, places: Tensor, words: Tensor, counts: Tensor) -> Tensor:
    return gloria(image, sentence, places, words, counts, **TEMPERATURES, **WEIGHTS)


def theirs(
    image: Tensor, sentence: Tensor, places: Tensor, words: Tensor, counts: Tensor
) -> Tensor:
    columns = [text_scores(places, words[i, :, :n]) for i, n in enumerate(counts.tolist())]
    near = torch.stack(columns, 1) * TEMPERATURES["temp3"]
    far = F.cosine_similarity(image[:, None], sentence[None], dim=2) * TEMPERATURES["temp3"]
    own = torch.arange(BATCH)
    return sum(F.cross_entropy(x, own) for x in (near, near.T, far, far.T))


def text_scores(places: Tensor, words: Tensor) -> Tensor:
    """Local score of every image for one text (D, n)."""
    words = words[None].repeat(len(places), 1, 1)
    flat = places.flatten(2)
    among_words = torch.bmm(flat.transpose(1, 2), words).softmax(2)
    over_places = (among_words.transpose(1, 2) * TEMPERATURES["temp1"]).softmax(2)
    attended = torch.bmm(flat, over_places.transpose(1, 2))
    dot = (words * attended).sum(1)
    norms = words.norm(dim=1) * attended.norm(dim=1)
    cosine = dot / norms.clamp(min=1e-8)
    return (cosine * TEMPERATURES["temp2"]).exp().sum(1).log()


SIDES: dict[str, Callable[..., Tensor]] = {"ours": ours, "theirs": theirs}


def step(side: str, leaves: list[Tensor], counts: Tensor) -> list[Tensor]:
    """Gradients of one forward and backward pass."""
    return list(torch.autograd.grad(SIDES[side](*leaves, counts), leaves))


def seconds(side: str, leaves: list[Tensor], counts: Tensor) -> float:
    begin = time.perf_counter()
    step(side, leaves, counts)
    return time.perf_counter() - begin


def rate() -> float:
    """Floating-point operations per second of a large product, the best of three."""
    side, best = sized(2048, 64), 0.0
    x = torch.randn(side, side)
    for _ in range(4):
        begin = time.perf_counter()
        x @ x
        best = max(best, 2 * side**3 / (time.perf_counter() - begin))
    return best


def product(_: object, left: Sequence[int], right: Sequence[int], **_more: object) -> int:
    """Operations of left @ right, given their shapes."""
    return 2 * math.prod(left) * right[-1]


def operations(side: str, leaves: list[Tensor], counts: Tensor) -> float:
    """Floating-point operations of all matrix products."""
    aten = torch.ops.aten
    in_place = dict.fromkeys((aten.addmm_, aten.baddbmm_), product)
    with flop_counter.FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        step(side, leaves, counts)
    return counter.get_total_flops()


def alone(side: str, lengths: str) -> None:
    """One step in this process; prints how many MiB it takes at most beyond the inputs."""
    leaves, counts = inputs(lengths)
    torch.ones(64, 64) @ torch.ones(64, 64)
    before = resident("VmRSS")
    step(side, leaves, counts)
    console.result(f"{resident('VmHWM') - before:.0f}")


def peak(side: str, lengths: str, threads: int) -> float:
    command = [sys.executable, __file__, "--alone", side, lengths, "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def gap(leaves: list[Tensor], counts: Tensor) -> float:
    """Between the gradients, as a share of each one's largest."""
    both = (step(side, leaves, counts) for side in SIDES)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*both, strict=True))


def rows(lengths: str, pairs: int, threads: int) -> list[tuple[str, ...]]:
    leaves, counts = inputs(lengths)
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    rates = []
    for i in range(pairs + 1):
        for side in sorted(SIDES, reverse=bool(i % 2)):
            rates.append(rate())
            found[side].append(seconds(side, leaves, counts))
        console.say(f"  {lengths}: {found['ours'][-1]:.2f} s, {found['theirs'][-1]:.2f} s")
    times = {side: statistics.median(each[1:]) for side, each in found.items()}
    ratios = [a / b for a, b in zip(found["ours"][1:], found["theirs"][1:], strict=True)]
    peaks = {side: peak(side, lengths, threads) for side in SIDES}
    speed = statistics.median(rates)
    table = []
    for side in SIDES:
        counted = operations(side, leaves, counts)
        arithmetic = f"{counted / 1e9:.0f}", f"{counted / times[side] / 1e9:.0f}"
        limit = f"{speed / 1e9:.0f}", f"{counted / speed:.2f}"
        table.append(
            (lengths, side, f"{times[side]:.2f}", f"{peaks[side]:.0f}", *arithmetic, *limit)
        )
    slower, larger = statistics.median(ratios), peaks["ours"] / peaks["theirs"]
    met = (slower, "seconds", 1.0), (larger, "memory", 0.25), (gap(leaves, counts), "gap", 1e-5)
    for value, what, goal in met:
        console.say(f"{lengths}, {what}: {value:.2g}, {verdict(value, goal, least=False)}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=sized(3, 1))
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.alone:
        return alone(*given.alone)
    table = [
        row for lengths in ("full", "drawn") for row in rows(lengths, given.pairs, given.threads)
    ]
    header = ("words", "side", "s/step", "peak MiB", "GFLOP", "GFLOP/s", "GEMM GFLOP/s", "limit, s")
    console.result(console.table(header, table))


if __name__ == "__main__":
    main()
