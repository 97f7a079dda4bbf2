"""The process in which one setting of a resource check is measured: `python -m
vilmedic_ssl.experiment.sweep_child TASK.json ANSWER.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment.data import dataset_of, pin_classes
from vilmedic_ssl.experiment.settings import check, model_of, typed

IMAGES = 8  # that are read; they are repeated to fill a batch


def measure(config: Mapping[str, Any], memory_gb: float | None) -> dict[str, Any]:
    """Time and memory of training steps of a config, or why there are none: `state` is measured,
    does not fit, or error.
    """
    from vilmedic_ssl import dist
    from vilmedic_ssl.executors.sweep_resources import (
        is_out_of_memory,
        limit_memory,
        peak_gib,
        time_steps,
    )

    experiment = typed(check(config))
    assert experiment.trainor is not None
    device = dist.choose_device(experiment.device)
    try:
        node = check(config)
        dataset = dataset_of(experiment, node, "train", augment=True)
        pin_classes(node["model"], dataset)
        model = model_of(node, pretrained=False)
        size = experiment.trainor.images_per_step
        if memory_gb is not None:
            limit_memory(memory_gb, device)
        batch = batch_of(dataset, size)
        moved = {k: v.to(device) for k, v in batch.items() if hasattr(v, "to")}
        model.to(device).train()
        model.at_step(0, experiment.trainor.epochs)
        found = time_steps(model, experiment.trainor, moved)
    except UserError as error:
        return {"state": "error", "reason": str(error)}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {"state": "does not fit", "reason": str(error).splitlines()[0]}
    if memory_gb is not None and peak_gib(device) > memory_gb:
        return {"state": "does not fit", "reason": f"took {found['memory_gib']:.2f} GiB"}
    return {"state": "measured", "images": len(dataset), "batch": size, **found}


def batch_of(dataset: Any, size: int) -> dict[str, Any]:
    """A batch of `size` made of the first few training images."""
    import torch
    from torch import Tensor

    count = min(IMAGES, size, len(dataset))
    few = dataset.collate([dataset[index, index] for index in range(count)])
    pick = torch.arange(size) % count
    return {k: v[pick] if isinstance(v, Tensor) else v for k, v in few.items()}


if __name__ == "__main__":
    task, answer = map(Path, sys.argv[1:])
    found = measure(*json.loads(task.read_text(encoding="utf-8")))
    answer.write_text(json.dumps(found), encoding="utf-8")
