"""What test_distributed.py runs on every rank, and in its own process as the reference.

The same global batch, cut unevenly; gradients in float64 of losses and of every registered model.
"""

import contextlib
import sys

import torch
from torch import nn

from vilmedic_ssl import build, dist
from vilmedic_ssl.executors import gradient_cache
from vilmedic_ssl.losses import nt_xent
from vilmedic_ssl.registry import protos

N = 7  # rows of the global batch: no rank count divides it
CNN = {"backbone": "test_resnet", "in_chans": 1}
PLAIN = {"backbone": "test_vit", "in_chans": 1, "options": {"img_size": 32}}
MODELS = {"SimCLR": {"cnn": CNN, "projection": {"projection_dim": 8}, "loss": {"tau": 0.2}}}
FUSED = {"SimCLR": {**MODELS["SimCLR"], "cnn": {"backbone": "test_efficientnet", "in_chans": 1}}}
NO_NORM = {"SimCLR": {**MODELS["SimCLR"], "cnn": PLAIN}}


def mine(x):
    """This rank's rows; the last rank has fewer."""
    cuts = [round(N * (r + 1) / dist.world_size() + 0.2) for r in range(dist.world_size() - 1)]
    return x.tensor_split(cuts)[dist.rank()]


def views():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(N, 2, 1, 32, 32, generator=generator, dtype=torch.float64)


def loss_gradient():
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, N, 5, generator=generator, dtype=torch.float64)
    weight = nn.Linear(5, 4, dtype=torch.float64)
    torch.nn.init.orthogonal_(weight.weight, generator=torch.Generator().manual_seed(2))
    torch.nn.init.zeros_(weight.bias)
    wrapped = dist.wrap(weight)
    loss = nt_xent(wrapped(mine(z1)), wrapped(mine(z2)), tau=0.3)
    loss.backward()
    return {"loss": loss.detach(), "weight": weight.weight.grad, "bias": weight.bias.grad}


def model_gradient(name, keys, chunk=None):
    torch.manual_seed(0)
    model = build({"proto": name, **keys}).double().train()
    model = dist.globalise_batch_norm(model)
    batch = {"images": mine(views())}
    out = gradient_cache.backward(
        dist.wrap(model), batch, chunk=chunk, cast=contextlib.nullcontext, scale=lambda x: x
    )
    grads = {n: p.grad for n, p in model.named_parameters()}
    return {"loss": out["loss"], **grads, **{f"buffer {n}": b for n, b in model.named_buffers()}}


def everything():
    cases = {"nt_xent": loss_gradient()}
    for name in protos("models"):
        cases[f"{name}, batch norm"] = model_gradient(name, MODELS[name])
        cases[f"{name}, fused norm"] = model_gradient(name, FUSED[name])
        cases[f"{name}, no norm"] = model_gradient(name, NO_NORM[name])
        cases[f"{name}, chunks"] = model_gradient(name, NO_NORM[name], chunk=2)
    return cases


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.start(torch.device("cpu"))
    found = everything()
    if dist.rank() == 0:
        torch.save(found, sys.argv[1])
    dist.stop()
