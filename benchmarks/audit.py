"""Seconds and memory of the audit: first pass, remembered pass, 1,000 and 20,000 images, unlike
each other and alike, as the films of one protocol are.

    python benchmarks/audit.py [images ...]

Writes grey PNGs of 64, 128 and 256 pixels a side to a temporary folder, about 15 kB each, and
removes them. Every audit runs in a process of its own, so that its peak memory is its own.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pairs import console, sized

REPOSITORY = Path(__file__).resolve().parents[1]
SIZES = (64, 128, 256)
MEASURE = """
import json, resource, sys, time
from vilmedic_ssl.data import audit
begin = time.perf_counter()
found = audit(sys.argv[1], workers=int(sys.argv[2]))
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([seconds, peak, sum(f.severity == "leak" for f in found)]))
"""


def make(folder: Path, count: int, alike: bool) -> Path:
    """Smooth random pictures, sizes in turn, and their manifest: 70 / 10 / 20 %. Alike ones have
    a common picture and correlate by about 0.97.
    """
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    common = rng.integers(0, 255, (12, 12)).astype(float)
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["patient", "path", "split"])
        for i in range(count):
            side = SIZES[i % len(SIZES)]
            cells = rng.integers(0, 255, (12, 12)).astype(float)
            cells = 0.85 * common + 0.15 * cells if alike else cells
            coarse = Image.fromarray(cells.astype(np.uint8))
            values = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
            values = values + rng.integers(-6, 7, values.shape)
            Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(
                folder / f"{i}.png", compress_level=1
            )
            split = ("train",) * 7 + ("validate",) + ("test",) * 2
            table.writerow([f"p{i}", f"{i}.png", split[i % 10]])
    return folder / "manifest.csv"


def main() -> None:
    counts = [int(word) for word in sys.argv[1:]] or sized([1000, 20000], [20])
    workers = max(0, len(os.sched_getaffinity(0)) - 1)
    rows = []
    for count, alike in [(count, alike) for count in counts for alike in (False, True)]:
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "images").mkdir()
            manifest = make(Path(scratch) / "images", count, alike)
            place = {"PYTHONPATH": str(REPOSITORY), "VILMEDIC_SSL_CACHE": scratch}
            for name in ("first", "remembered"):
                command = [sys.executable, "-c", MEASURE, str(manifest), str(workers)]
                done = subprocess.run(
                    command, env={**os.environ, **place}, stdout=subprocess.PIPE, check=True
                )
                seconds, peak, leaks = json.loads(done.stdout)
                speed = f"{1000 * seconds / count:.2f}"
                kind = "alike" if alike else "unlike"
                timed = name, f"{seconds:.1f}", speed, f"{peak:.0f}", leaks
                rows.append((f"{count:,}", kind, *timed))
    header = ("images", "which", "pass", "seconds", "seconds per 1,000", "peak MiB", "leaks")
    console.result(f"{workers} worker process(es)")
    console.result(console.table(header, rows))


if __name__ == "__main__":
    main()
