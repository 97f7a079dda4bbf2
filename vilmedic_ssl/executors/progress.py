"""Where a training run stands, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where training stands; with weights, optimizer and random states this is all there is to
    resume from.

    Attributes:
        epoch: the one in progress, from 1; position: its batches done; step: all optimizer steps
            done.
        scores: one per evaluation, oldest first; score_epochs: the epoch of each;
            training_losses: the mean training loss at each.
        losses, chances, batches: sums over the epoch's batches of loss and chance level, and their
            number.
    """

    epoch: int = 1
    position: int = 0
    step: int = 0
    scores: list[float] = field(default_factory=list)
    score_epochs: list[int] = field(default_factory=list)
    training_losses: list[float] = field(default_factory=list)
    losses: float = 0.0
    chances: float = 0.0
    batches: int = 0
    lower_is_better: bool = True

    def remember(self, score: float, training_loss: float) -> None:
        """Note an evaluation of the epoch in progress."""
        self.scores.append(score)
        self.training_losses.append(training_loss)
        self.score_epochs.append(self.epoch)

    def next_epoch(self) -> None:
        """The epoch in progress is over."""
        self.epoch, self.position = self.epoch + 1, 0
        self.losses, self.chances, self.batches = 0.0, 0.0, 0

    def since(self, epoch: int, *, training: bool = False) -> list[float]:
        """Scores (or training losses) of evaluations from `epoch` on."""
        values = self.training_losses if training else self.scores
        return [v for v, e in zip(values, self.score_epochs, strict=True) if e >= epoch]
