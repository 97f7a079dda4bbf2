"""How long a person waits, and how much memory goes: `--help`, a whole short training.

    python benchmarks/startup.py

Each line is a fresh process beside one that does only what cannot be avoided.
"""

import os
import subprocess
import sys
import tempfile
import time

from pairs import compare, console, sized

OURS = [sys.executable, "-m", "vilmedic_ssl.cli"]
LIBRARIES = (
    "import vilmedic_ssl, torch, timm, omegaconf; from torchvision.transforms import v2; "
    "timm.create_model('test_resnet')"
)


def run(command: list[str]) -> tuple[float, float]:
    """(seconds, peak resident MB) of a process that must succeed."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    told = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed: {told}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def seconds(command: list[str]) -> float:
    return run(command)[0]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VILMEDIC_SSL_CACHE"] = f"{folder}/cache"
        # in a process of its own: peak memory is inherited from whoever starts a process
        make = "from vilmedic_ssl.data.phantom import make_phantom; make_phantom(%r, %s)"
        drawn = make % (f"{folder}/phantom", "patients=40, size=64")
        subprocess.run([sys.executable, "-c", drawn], check=True)
        train = [*OURS, "train", "config/SELFSUP/simclr-phantom.yml", f"ckpt_dir={folder}/ckpt"]
        train += [f"dataset.manifest={folder}/phantom/manifest.csv", "name=x", "overwrite=true"]
        train += ["trainor.max_steps=1", "trainor.batch_size=16", "num_workers=0", "device=cpu"]
        least = {
            "an empty Python": [sys.executable, "-c", "pass"],
            "importing the libraries": [sys.executable, "-c", LIBRARIES],
        }
        rows = []
        for name, ours, beside in (
            ("--help", [*OURS, "--help"], "an empty Python"),
            ("describe SimCLR", [*OURS, "describe", "SimCLR"], "importing the libraries"),
            ("train, one step, scored, saved", train, "importing the libraries"),
        ):
            console.say(name)
            a, b, _ = compare(
                lambda c=ours: seconds(c), lambda c=least[beside]: seconds(c), rounds=sized(5, 1)
            )
            memory = f"{run(ours)[1]:,.0f}", f"{run(least[beside])[1]:,.0f}"
            rows.append((name, f"{a:.2f}", f"{b:.2f}", f"{a - b:+.2f}", beside, *memory))
    header = ("command", "s", "beside it, s", "difference", "what stands beside", "peak MB", "MB")
    console.result(console.table(header, rows))


if __name__ == "__main__":
    main()
