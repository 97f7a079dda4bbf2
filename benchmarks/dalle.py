"""DALLE beside dalle-pytorch: training step, memory, drawing.

    python benchmarks/dalle.py [--threads 1] [--pairs 5]

Networks of equal weights (dim 256, depth 4, 8 heads of 64, 1,000 words, a VAE of 3 layers and 512
tokens), float32, Adam. A step codes the images, and takes loss, gradients and an update. Both sides
take turns in one process, on the CPU time of the process; memory is each alone in a process: how
far the resident set grows at most beyond the networks, over three steps. Drawing is four images of
64 pixels behind 64 words, with equal random numbers, by the clock; 1.4.2 is the last version whose
cache works. Both versions are fetched without what they ask for.
"""

import argparse
import gc
import importlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pairs import TOY, compare, console, resident, sized, verdict

from vilmedic_ssl.losses.discrete import token_entropy
from vilmedic_ssl.nets import dalle_package
from vilmedic_ssl.nets.dalle import Dalle
from vilmedic_ssl.nets.dalle_sampling import Sampling, draw_codes
from vilmedic_ssl.nets.dalle_transformer import TransformerShape
from vilmedic_ssl.nets.dvae import DiscreteVAE, VAEShape

WORDS = 1000
MIXED = ("full", "axial_row", "axial_col", "conv_like")
CASES = {  # pixels, text, batch, attention, goal of the time
    "128 tokens": (64, 64, 8, ("full",), 0.82),
    "320 tokens": (64, 256, 8, ("full",), 0.75),
    "320 tokens, four kinds": (64, 256, 8, MIXED, 0.71),
    "1,280 tokens": (256, 256, 2, ("full",), 0.42),
}
CASES = sized(CASES, {"12 tokens": (16, 8, 2, ("full",), 1.0)})
DRAWN = sized((64, 64, 4), (16, 8, 2))  # pixels, words, images


def networks(module: Any, pixels: int, text: int, kinds: tuple[str, ...]) -> tuple[Any, Any]:
    """Ours and theirs with the same weights."""
    torch.manual_seed(0)
    sizes = {"image_size": pixels, "num_tokens": 512, "codebook_dim": 512, "num_layers": 3}
    vae = module.DiscreteVAE(**sizes, hidden_dim=64, num_resnet_blocks=1)
    shape = {"dim": 256, "depth": 4, "heads": 8, "dim_head": 64}
    words = {"num_text_tokens": WORDS, "text_seq_len": text}
    theirs = module.DALLE(vae=vae, **shape, **words, attn_types=kinds)
    own = VAEShape(**sizes, hidden_dim=64, num_resnet_blocks=1, channels=3)
    ours = Dalle(DiscreteVAE(own), TransformerShape(**shape, attn_types=list(kinds)), WORDS, text)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def our_loss(net: Dalle, text: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    text, codes = net.padded(text), net.vae.get_codebook_indices(images)
    words, places, _ = net(text, codes)
    return (token_entropy(words, text).mean() + 7 * token_entropy(places, codes).mean()) / 8


def step_of(net: Any, text: torch.Tensor, images: torch.Tensor) -> Callable[[], float]:
    """One training step; gives its loss."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        ours = isinstance(net, Dalle)
        loss = our_loss(net, text, images) if ours else net(text, images, return_loss=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def inputs(pixels: int, text: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(1, WORDS, (batch, text)), torch.rand(batch, 3, pixels, pixels)


def timed(run: Callable[[], Any], clock: Callable[[], float]) -> Callable[[], float]:
    def seconds() -> float:
        begin = clock()
        run()
        return clock() - begin

    return seconds


def alone(side: str, case: str) -> None:
    """Three steps in this process; prints how many MiB they take at most beyond the network."""
    pixels, text, batch, kinds, _ = CASES[case]
    pair = networks(dalle_package.package(), pixels, text, kinds)
    net = pair[side == "theirs"]
    del pair
    gc.collect()
    step = step_of(net, *inputs(pixels, text, batch))
    before = resident("VmRSS")
    for _ in range(3):
        step()
    console.result(f"{resident('VmHWM') - before:.0f}")


def peak(side: str, case: str, threads: int) -> float:
    command = [sys.executable, __file__, "--alone", side, case, "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def training(case: str, pairs: int, threads: int) -> tuple[str, ...]:
    pixels, text, batch, kinds, goal = CASES[case]
    ours, theirs = networks(dalle_package.package(), pixels, text, kinds)
    steps = [step_of(net, *inputs(pixels, text, batch)) for net in (ours, theirs)]
    console.say(f"{case}: first losses {steps[0]():.6f}, {steps[1]():.6f}")
    mine, yours, ratio = compare(*(timed(step, time.process_time) for step in steps), rounds=pairs)
    memory = [peak(side, case, threads) for side in ("ours", "theirs")]
    least = memory[0] / memory[1]
    times = f"{mine:.2f}", f"{yours:.2f}", f"{ratio:.2f}", verdict(ratio, goal, least=False)
    room = f"{memory[0]:.0f}", f"{memory[1]:.0f}", f"{least:.2f}", verdict(least, 1, least=False)
    return (case, *times, *room)


def older(version: str) -> ModuleType:
    """Another version beside the installed one."""
    folder = Path(tempfile.mkdtemp())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = ["--no-deps", "--target", str(folder), f"dalle-pytorch=={version}"]
    subprocess.run([*pip, *wanted], check=True)
    for name in [name for name in sys.modules if name.split(".")[0] == "dalle_pytorch"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    with dalle_package.standing_in():
        return importlib.import_module("dalle_pytorch")


def drawing(version: str, module: Any, pairs: int, goal: float, *, least: bool) -> tuple[str, ...]:
    pixels, words, count = DRAWN
    ours, theirs = networks(module, pixels, words, ("full",))
    text, _ = inputs(pixels, words, count)
    images = []

    def own() -> None:
        torch.manual_seed(2)
        images.append(ours.vae.decode(draw_codes(ours, text, Sampling(filter_thres=0.9))))

    def peer() -> None:
        torch.manual_seed(2)
        images.append(theirs.generate_images(text.clone(), filter_thres=0.9, use_cache=True))

    mine, yours, _ = compare(timed(own, time.perf_counter), timed(peer, time.perf_counter), pairs)
    gap = max(float((a - images[0]).abs().max()) for a in images)
    console.say(f"  the images differ by {gap:.1e} at most")
    ratio = yours / mine
    return (
        f"draw 4, beside {version}",
        f"{mine:.2f}",
        f"{yours:.2f}",
        f"{ratio:.1f} x",
        verdict(ratio, goal, least=least),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=sized(5, 1))
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.alone:
        return alone(*given.alone)
    rows = [training(case, given.pairs, given.threads) for case in CASES]
    header = ("step", "ours, s", "1.6.6, s", "ratio", "goal")
    more = ("ours, MiB", "1.6.6, MiB", "ratio", "goal")
    console.result(console.table((*header, *more), rows))
    rows = [drawing("1.6.6", dalle_package.package(), sized(3, 1), 8, least=True)]
    if not TOY:  # which is fetched
        rows.append(drawing("1.4.2", older("1.4.2"), given.pairs, 1, least=True))
    console.result(console.table(("", "ours, s", "theirs, s", "faster by", "goal"), rows))


if __name__ == "__main__":
    main()
