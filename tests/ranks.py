"""What test_distributed.py runs on every rank, and in its own process as the reference.

The same global batch, cut unevenly; gradients of every loss and of every registered model.

    ranks.py FILE [PLUGIN MODEL]: all models, or the one of a plug-in
"""

import contextlib
import os
import sys

import torch
from methods import SMALL, cases, node_of, reports
from torch import nn

from vilmedic_ssl import build, dist, losses
from vilmedic_ssl.executors import gradient_cache
from vilmedic_ssl.losses import blocks
from vilmedic_ssl.registry import load_plugins

N = 11  # rows of the global batch: no rank count divides it
VERSION_2 = {"projection_dim": 8, "layers": 3, "hidden_dim": "encoder", "batch_norm": True}
PAIRS = {
    "nt_xent": {"tau": 0.3},
    "moco_v3": {"tau": 0.3},
    "byol": {},
    "sim_siam": {},
    "barlow_twins": {"lambda_": 0.01},
    "vicreg": {"sim_loss_weight": 25.0, "var_loss_weight": 25.0, "cov_loss_weight": 1.0},
    "convirt": {"tau": 0.3, "lambda_": 0.75},
    "info_nce": {"tau": 0.3},
    "sigmoid": {"log_tau": 1.0, "bias": -2.0},
    "gloria": {
        **{"temp1": 4.0, "temp2": 5.0, "temp3": 10.0},
        **{"local_loss_weight": 1.0, "global_loss_weight": 0.5},
    },
}
EQUAL = torch.arange(N)[:, None] % 7 == torch.arange(N) % 7  # texts that are the same
NEAR = torch.arange(N)[:, None] % 5 == torch.arange(N) % 5
OF_TEXTS = ("convirt", "info_nce", "sigmoid", "gloria")
TOLD = {"positives": EQUAL, "left_out": NEAR}  # and what does not count
LABELS = torch.where(torch.arange(N) % 4 == 2, -1, torch.arange(N) % 3)  # some are unknown
OF_LABELS = {
    "label_entropy": {"label_smoothing": 0.1, "class_weights": torch.tensor([0.5, 1, 2, 3])},
    "ordinal_entropy": {"class_weights": torch.tensor([0.5, 1, 2, 3, 1])},
    "distillation": {"temperature": 2.0, "alpha": 0.3},
}


def mine(x):
    """This rank's rows; the last rank has fewer."""
    cuts = [round(N * (r + 1) / dist.world_size() + 0.2) for r in range(dist.world_size() - 1)]
    return x.tensor_split(cuts)[dist.rank()]


def batch_for(model, dtype):
    """This rank's part of a batch with everything a model may take."""
    generator = torch.Generator().manual_seed(1)
    whole = {
        "images": torch.randn(N, model.views, 1, 32, 32, generator=generator, dtype=torch.float64),
        "local": torch.randn(N, 2, 1, 16, 16, generator=generator, dtype=torch.float64),
        "labels": LABELS,
        "seeds": torch.arange(N) * 10**12,
        **reports(N),
    }
    if model.pixels:
        whole["images"] = whole["images"].sigmoid()
    return {k: mine(v.to(dtype) if v.is_floating_point() else v) for k, v in whole.items()}


def loss_gradient(name, keys):
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, N, 5, generator=generator, dtype=torch.float64)
    weight = nn.Linear(5, 4, dtype=torch.float64)
    torch.nn.init.orthogonal_(weight.weight, generator=torch.Generator().manual_seed(2))
    torch.nn.init.zeros_(weight.bias)
    wrapped, loss_of = dist.wrap(weight), getattr(losses, name)
    first, second = wrapped(mine(z1)), wrapped(mine(z2))
    if name == "distillation":
        loss = loss_of(first, second, labels=mine(LABELS), **keys)
    else:
        loss = loss_of(first, mine(LABELS) if name in OF_LABELS else second, **keys)
    loss.backward()
    return {"loss": loss.detach(), "weight": weight.weight.grad, "bias": weight.bias.grad}


class Towers(nn.Module):
    """One layer for all that a loss of images and texts takes, and two learnt numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 4, dtype=torch.float64)
        torch.nn.init.orthogonal_(self.layer.weight, generator=torch.Generator().manual_seed(2))
        torch.nn.init.constant_(self.layer.bias, 0.1)
        self.first = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))

    def forward(self, *rows):
        return [self.layer(x) for x in rows], self.first, self.second


def told_gradient(name, **keys):
    """A loss of images and texts with further right answers, pairs that do not count, and, where
    it has them, learnt numbers; the longest text of a rank sets how many columns of words it has.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, N, 7, 5, generator=generator, dtype=torch.float64)
    counts = mine(torch.tensor([3, 7, 2, 5, 1, 6, 4, 4, 3, 2, 5]))
    rows = [z[0, :, 0], z[1, :, 0], z[2, :, :6], z[3, :, : int(counts.max())]]
    towers = Towers()
    wrapped = dist.wrap(towers)  # held, or nothing adds the ranks' gradients
    (text, image, places, words), first, second = wrapped(*map(mine, rows))
    given, learnt = [text, image], {"tau": first}
    if name == "sigmoid":
        learnt = {"log_tau": first, "bias": second}
    if name == "gloria":
        given, learnt = [image, text, places.mT.unflatten(2, (2, 3)), words.mT, counts], {}
    loss = getattr(losses, name)(*given, **{**PAIRS[name], **learnt, **keys})
    (loss + 0 * (first + second)).backward()  # DDP waits for a gradient of every parameter
    return {"loss": loss.detach(), **{n: p.grad for n, p in towers.named_parameters()}}


def in_blocks(name):
    """Some ranks' share of the logits is more than one block, others' is not."""
    whole, blocks.WHOLE = blocks.WHOLE, 30
    found = told_gradient(name) if name in OF_TEXTS else loss_gradient(name, PAIRS[name])
    blocks.WHOLE = whole
    return found


def model_gradient(name, encoder, chunk=None, dtype=torch.float64, **more):
    """Loss, gradients, and what moved: buffers, and the parameters that follow others."""
    torch.manual_seed(0)
    model = build(node_of(name, encoder, **more)).to(dtype).train()
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in learned.values():
            p.mul_(1.05)  # so that what follows has a way to go
    model = dist.globalise_batch_norm(model)
    model.at_step(3, 10)
    out = gradient_cache.backward(
        dist.wrap(model),
        batch_for(model, dtype),
        chunk=chunk,
        cast=contextlib.nullcontext,
        scale=lambda x: x,
    )
    model.after_step()
    moved = {f"moved {n}": t for n, t in model.state_dict().items() if n not in learned}
    return {"loss": out["loss"], **{n: p.grad for n, p in learned.items()}, **moved}


def everything(names=None):
    plain = {} if names else {**PAIRS, **OF_LABELS}
    alone = {name: keys for name, keys in plain.items() if name not in OF_TEXTS}
    found = {name: loss_gradient(name, keys) for name, keys in alone.items()}
    if not names:
        told = {name: mine(matrix) for name, matrix in TOLD.items()}
        found |= {name: told_gradient(name) for name in OF_TEXTS}
        found |= {f"{name}, told": told_gradient(name, **told) for name in OF_TEXTS}
        blocked = ("nt_xent", "moco_v3", "convirt", "sigmoid")
        found |= {f"{name}, in blocks": in_blocks(name) for name in blocked}
        frozen = {"freeze": {"last_n_layers": 1}}
        found["Classifier, frozen"] = model_gradient("Classifier", "batch norm", **frozen)
        deep = {**SMALL["DALLE"]["dalle"], "reversible": True}
        found["DALLE, reversible"] = model_gradient("DALLE", "no norm", dalle=deep)
        summed = {"kl_reduction": "batch", "straight_through": True}
        found["VAE, summed"] = model_gradient("VAE", "no norm", chunk=2, **summed)
        found["SimCLRv2"] = model_gradient("SimCLR", "batch norm", projection=VERSION_2)
    for name, encoder in cases(names):
        found[f"{name}, {encoder}"] = model_gradient(name, encoder)
        found[f"{name}, {encoder}, float32"] = model_gradient(name, encoder, dtype=torch.float32)
        if encoder == "no norm":
            found[f"{name}, chunks"] = model_gradient(name, encoder, chunk=2)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    path, *plugin = sys.argv[1:]
    load_plugins(plugin[:1])
    dist.start(torch.device("cpu"))
    found = everything(plugin[1:])
    if dist.rank() == 0:
        torch.save(found, path)
    dist.stop()
    os._exit(0)  # as the command line does: threads of gloo may abort a process that shuts down
