"""The model that a run would give if it ended now, and the error with which it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from .errors import TrainingError
from .trained_weights import TrainedWeights, Tuned
from .world import World


class Kept:
    """The last good model: of the last measurement or checkpoint, with patience that of the lowest held-out loss.

    folder: of the run, if it has one. step: after which it was taken; place: the checkpoint it lies in, if in one.
    """

    def __init__(self, trained: TrainedWeights, world: World, folder: Path | None, first: Tuned) -> None:
        self.trained, self.world, self.folder = trained, world, folder
        self.tuned, self.step, self.place = first, 0, ""

    def hold(self, tuned: Tuned, step: int, place: str = "") -> None:
        self.tuned, self.step, self.place = tuned, step, place

    def finish(self) -> Tuned:
        """The result of the run; from its folder if it has one, where it is written first."""
        if self.folder is None:
            return self.tuned
        folder = self.folder
        self.world.told(lambda: self.trained.publish(folder, self.tuned))
        return self.trained.published(folder)

    def error(self, what: str, *, details: Sequence[str] = (), hint: str = "", agreed: bool = True) -> TrainingError:
        """An error that holds the model, which is written to the folder of the run.

        agreed: all processes end here, so that the first one can tell whether it could write.
        """
        place = f"in {self.place}" if self.place else "in this error's `model`"
        if self.folder is not None and self.step > 0:
            folder = self.folder
            with contextlib.suppress(OSError, TrainingError):  # A full disk has no room for a second copy.
                if agreed:
                    self.world.told(lambda: self.trained.publish(folder, self.tuned))
                elif self.world.first:
                    self.trained.publish(folder, self.tuned)
                place = f"in {folder}"
        kept = f"the weights after step {self.step} are kept {place}"
        error = TrainingError(what, details=[*details, kept], hint=hint)
        error.model = self.tuned.model
        return error
