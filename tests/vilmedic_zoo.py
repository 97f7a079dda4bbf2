"""Files as ViLMedic's zoo has them: small networks of the same layout, with names, wrappers and
pickled objects like theirs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models import resnet18
from transformers import BertConfig, BertGenerationConfig, BertGenerationEncoder, BertModel

VOCABULARY = [
    *("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"),
    *("clear", "effusion", "enlarged", "heart", "is", "left", "lung", "no", "opacity", "right"),
    "the",
]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "vocab_size": len(VOCABULARY),
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
CNN = {"proto": "CNN", "backbone": "resnet18", "output_layer": "avgpool", "freeze": True}
CNN |= {"dropout_out": 0.0, "permute": "batch_first"}
DATASET = {
    "proto": "ImSeq",
    "image": {"root": "x", "file": "image.tok", "image_path": "y", "resize": 40, "crop": 32},
    "seq": {"root": "x", "file": "report.tok", "tokenizer": None, "tokenizer_max_len": 12},
}


class Visual(nn.Module):
    """The image encoder: children of a torchvision network in a sequence."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        net = resnet18(num_classes=3)
        net(torch.rand(4, 3, 64, 64))  # statistics of its own
        setattr(self, name, nn.Sequential(*list(net.children())[:-1]))

    def forward(self, images: Tensor) -> Tensor:
        return getattr(self, self.name)(images).flatten(1)


class Linguistic(nn.Module):
    """The text encoder, and a pooling layer beside it where it has none."""

    def __init__(self, *, new: bool):
        super().__init__()
        if new:
            self.encoder = BertGenerationEncoder(BertGenerationConfig(**SIZES))
            self.pooler = nn.ModuleDict({"dense": nn.Linear(16, 16)})
        else:
            self.encoder = BertModel(BertConfig(**SIZES))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        out = self.encoder(input_ids=ids, attention_mask=mask)
        if not hasattr(self, "pooler"):
            return out.pooler_output
        return torch.tanh(self.pooler["dense"](out.last_hidden_state[:, 0]))


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 8))


class ConVIRT(nn.Module):
    def __init__(self, *, new: bool = True, visual: str = "cnn"):
        super().__init__()
        self.linguistic, self.visual = Linguistic(new=new), Visual(visual)
        self.vis_proj, self.lin_proj = head(512), head(16)

    def images(self, images: Tensor) -> Tensor:
        return self.vis_proj(self.visual(images))

    def texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.lin_proj(self.linguistic(ids, mask))


class GLoRIA(nn.Module):
    """Of ViLMedic, or (`official`) of the authors' own release."""

    def __init__(self) -> None:
        super().__init__()
        self.linguistic, self.visual = Linguistic(new=False), Visual("cnn")
        self.global_embedder = nn.Linear(512, 16)
        self.local_embedder = nn.Conv2d(256, 16, 1, bias=False)

    def official(self) -> dict[str, Tensor]:
        """The names of that release."""
        children = {"0": "conv1", "1": "bn1", **{str(i + 3): f"layer{i}" for i in (1, 2, 3, 4)}}
        found = {}
        for name, tensor in self.state_dict().items():
            part, _, rest = name.partition(".")
            if part == "visual":
                number, _, rest = rest.removeprefix("cnn.").partition(".")
                found[f"gloria.img_encoder.model.{children[number]}.{rest}"] = tensor
            elif part == "linguistic":
                found[f"gloria.text_encoder.model.{rest.removeprefix('encoder.')}"] = tensor
            else:
                found[f"gloria.img_encoder.{name}"] = tensor
        return found


def checkpoint(model: nn.Module, path: Path) -> Path:
    """As ViLMedic's trainor writes it: DataParallel's prefix, buffers that transformers no longer
    keeps, the config as OmegaConf, numbers of NumPy.
    """
    tensors = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    ids = "module.linguistic.encoder.embeddings.position_ids"
    tensors[ids] = torch.arange(40)[None]
    config = OmegaConf.create({"lr": 1e-4, "splits": ["validate"], "name": None})
    content: dict[str, Any] = {
        "model": tensors,
        "training_scheduler": {
            "current_best_metric": np.float64(1.6),
            "lr_decay_params": config,
            "metric_comp_func": operator.lt,
        },
        "optimizer": {"param_groups": [{"lr": np.float32(0.1)}]},
        "config": config,
        "__version__": "1.2.8",
    }
    torch.save(content, path)
    return path


def zoo_folder(folder: Path, model: nn.Module, node: dict[str, Any], **dataset: Any) -> Path:
    """One .pth, config.yml and the vocabulary."""
    folder.mkdir(parents=True)
    checkpoint(model, folder / "1.6_3_42.pth")
    OmegaConf.save(
        {"name": "zoo", "model": node, "dataset": dataset or DATASET}, folder / "config.yml"
    )
    (folder / "vocab.src").write_text("\n".join(VOCABULARY) + "\n")
    return folder


def stirred(make: Callable[[], nn.Module]) -> Any:
    """A model in eval mode whose every tensor differs from what anything is initialised with."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.2 * torch.rand_like(tensor)).add_(0.01)
    return model
