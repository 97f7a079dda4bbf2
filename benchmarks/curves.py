"""Loss curves of every image-only method against lightly's: the same pictures, weights and steps.

    python benchmarks/curves.py [method ...]

Twenty steps of SGD in float64 on batches of 8, small networks; the table has the largest difference
of the losses as a part of the largest loss: first against lightly as its examples use it, then with
every difference of definition undone on its side. What is left then is rounding.
"""

import contextlib
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pairs import console, sized, verdict
from peers import Theirs, require
from torch import nn
from twins import METHODS, batch_of, twins

from vilmedic_ssl.executors import gradient_cache
from vilmedic_ssl.nets.ema import cosine_tau

STEPS, BATCH, RATE = sized(20, 2), sized(8, 4), 0.05
GOAL = 1e-8  # lightly's position embeddings have the accuracy of float32


@dataclass
class Account:
    """What makes lightly's definition ours.

    Attributes:
        together: its views go through batch norm in one pass.
        make: further arguments of its model.
        loss: ours from its own, (factor, constant).
        decay: its target network follows with our decay after each step.
    """

    reason: str = "none: same definition"
    together: bool = False
    make: dict[str, Any] = field(default_factory=dict)
    loss: tuple[float, float] = (1.0, 0.0)
    decay: bool = False


FOLLOWS = "target follows after the step, tau 1 at its end; lightly's before the next, tau 1 there"
VIEWS = "both views in one batch-norm pass"
ACCOUNTS = {
    "SimCLR": Account(VIEWS, together=True),
    "BYOL": Account(f"4 + 4 times its loss; {FOLLOWS}", loss=(4.0, 4.0), decay=True),
    "VICReg": Account("its variance part is halved", make={"mu_param": 50.0}),
    "MoCoV3": Account(FOLLOWS, decay=True),
    "DINO": Account(
        f"crops of one size in one batch-norm pass; {FOLLOWS}", together=True, decay=True
    ),
    "DINO, ViT": Account(FOLLOWS, decay=True),
    "MAE": Account(
        "row before column in position embeddings",
        make={"like_ours": True},
    ),
}
cosine_schedule = require("lightly.utils.scheduler", extra="bench").cosine_schedule


def batches(views: int) -> list[dict[str, torch.Tensor]]:
    return [batch_of(BATCH, views, seed=step) for step in range(STEPS)]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    learnt = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(learnt, lr=RATE, momentum=0.9)


def of_ours(model: Any) -> list[float]:
    """Losses of the steps the trainor takes."""
    optimizer, found = optimizer_of(model), []
    for step, batch in enumerate(batches(model.views)):
        model.at_step(step, STEPS)
        optimizer.zero_grad()
        out = gradient_cache.backward(
            model, batch, chunk=None, cast=contextlib.nullcontext, scale=lambda x: x
        )
        optimizer.step()
        model.after_step()
        found.append(float(out["loss"]))
    return found


def of_theirs(model: Theirs, views: int, start: float, account: Account) -> list[float]:
    """Losses of a bare loop, as ours defines them."""
    model.together = account.together
    factor, constant = account.loss
    optimizer, found = optimizer_of(model), []
    for step, batch in enumerate(batches(views)):
        if not account.decay:
            model.follow(cosine_schedule(step, STEPS, start, 1.0))
        loss = constant + factor * model.loss(**batch)
        optimizer.zero_grad()
        loss.backward()
        model.before_step(step)
        optimizer.step()
        if account.decay:
            model.follow(cosine_tau(start, step, STEPS))
        found.append(float(loss.detach()))
    return found


def difference(name: str, account: Account) -> float:
    """Largest difference of the two curves, as a part of the largest loss."""
    ours, theirs = twins(name, tiny=True, **account.make)
    start = getattr(ours, "start", 0.0)
    a, b = of_ours(ours), of_theirs(theirs, ours.views, start, account)
    return float(np.abs(np.subtract(a, b)).max() / np.abs(a).max())


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # a number that lightly makes a tensor is one of these
    rows = []
    for name in sys.argv[1:] or METHODS:
        account = ACCOUNTS.get(name, Account())
        plain, left = (difference(name, a) for a in (Account(), account))
        told = f"{plain:.0e}", account.reason, f"{left:.0e}", verdict(left, GOAL, least=False)
        rows.append((name, *told))
    header = ("method", "as it stands", "what differs", "that undone", "goal")
    console.result(console.table(header, rows))


if __name__ == "__main__":
    main()
