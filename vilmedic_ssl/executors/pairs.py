"""What a paired model says of images and texts, for plug-ins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilmedic_ssl.data.texts import Texts
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.features import Features, Source
from vilmedic_ssl.metrics.arrays import unit_rows
from vilmedic_ssl.models.pairs import PairedModel

AT_ONCE = 64  # texts, or pairs, per forward pass


def reader_of(features: Features, plugin: str, source: Source = "model") -> Reader:
    """The model of some features, or the same network untrained, as one that reads.

    Raises:
        UserError: it reads no reports.
    """
    model = features.untrained() if source == "random_init" else features.models[0]
    texts = features.dataset(features.splits[0]).texts
    if not isinstance(model, PairedModel) or texts is None:
        raise UserError(
            f"{plugin}: {type(model).__name__} reads no reports; take {plugin} out of "
            "ensemblor.post_processing, or train ConVIRT, CLIP, SigLIP or GLoRIA"
        )
    return Reader(features, model, texts)


class Reader:
    """One model, that of the best checkpoint, and the texts it is asked about.

    K = pairs, N = images of a split, M = texts, W = words, h x w = places.
    """

    def __init__(self, features: Features, model: PairedModel, texts: Texts):
        self.features, self.model, self.texts = features, model, texts
        self.device = next(model.parameters()).device
        self._seen: dict[str, np.ndarray] = {}

    def reports(self, split: str) -> list[str]:
        """The reports of a split as the model reads them.

        Raises:
            UserError: it has none.
        """
        said = list(self.features.dataset(split).said or [])
        if not any(said):
            raise UserError(f"no image of {split} has a report; take it out of ensemblor.splits")
        return said

    def words(self, text: str) -> list[str]:
        """The words of a text as `word_heat` counts them, special tokens included."""
        return self.texts.word_strings(text)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """`text` (M, D) and `linguistic` (M, P), float32."""
        parts = [self.model.encode_text(**self._tokens(some)) for some in _cut(texts)]
        return {key: _array(torch.cat([part[key] for part in parts])) for key in parts[0]}

    @torch.no_grad()
    def similarity(self, split: str, texts: Sequence[str]) -> np.ndarray:
        """Each image of a split against each text, (N, M) float32."""
        if type(self.model).similarity is PairedModel.similarity:  # of vectors alone
            image_NP = self._visual(split)
            return image_NP @ unit_rows(self.embed(texts)["linguistic"]).T
        some = [self._tokens(part) for part in _cut(texts)]
        return np.concatenate(
            [
                np.hstack([_array(self.model.similarity(batch["images"], **t)) for t in some])
                for batch in self.features.batches(split, f"{len(texts)} texts")
            ]
        )

    def _visual(self, split: str) -> np.ndarray:
        """(N, P) of unit length, computed once."""
        if split not in self._seen:
            found = [
                _array(self.model.encode(batch["images"])["visual"])
                for batch in self.features.batches(split, type(self.model).__name__)
            ]
            self._seen[split] = unit_rows(np.concatenate(found))
        return self._seen[split]

    def heat(self, split: str, indices: Sequence[int], texts: Sequence[str]) -> np.ndarray:
        """Where text k is seen in image indices[k], (K, h, w) float32 in [-1, 1]."""
        found = [
            self.heat_of(self.features.inputs(split, list(some)), texts[at : at + AT_ONCE])
            for at, some in zip(range(0, len(indices), AT_ONCE), _cut(indices), strict=True)
        ]
        return np.concatenate(found)

    @torch.no_grad()
    def heat_of(self, images: Tensor, texts: Sequence[str]) -> np.ndarray:
        """The same for images (K, C, H, W) as the network sees them."""
        return _array(self.model.heat(images, **self._tokens(texts)))

    @torch.no_grad()
    def word_heat(self, split: str, index: int, text: str) -> tuple[list[str], np.ndarray]:
        """The words of a text and where each is seen in an image, (W, h, w) float32."""
        text = self.texts.prepare(text) or text  # the words are those that `_tokens` counts
        images = self.features.inputs(split, [index])
        found = _array(self.model.word_heat(images, **self._tokens([text])))[0]
        words = self.words(text)
        return words, found[: len(words)]

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.texts.batch([self.texts.prepare(text) or text for text in texts])
        return {name: value.to(self.device) for name, value in tokens.items()}


def _cut(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE)]


def _array(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()
