"""Generators whose fit takes long: where they work, and how they go on from what was fitted before."""

from dataclasses import dataclass
from typing import Any

from recsys.candidates.base import Config
from recsys.data.split import Questions
from recsys.networks.training import Schedule
from recsys.settings import Settings
from recsys.tables import Catalog, InteractionLog


class Trainable(Config):
    """A config whose fit takes long: it has a place to work in, and goes on from what was fitted before."""

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> Any:
        """`train`, working where the environment says."""
        return self.train(log, catalog, seed=seed)

    def train(
        self,
        log: InteractionLog,
        catalog: Catalog,
        *,
        seed: int,
        settings: Settings | None = None,
        start: "HeadStart | None" = None,
    ) -> Any:
        """Fit on `log`. `settings`: the device, and where to keep checkpoints; by default from the environment."""
        raise NotImplementedError


class TrainedConfig(Trainable, Schedule):
    """A generator that is a neural network: see `Schedule`."""


@dataclass(frozen=True)
class HeadStart:
    """A generator of the same config, fitted on a part of the log, and questions from the rest, new to it."""

    generator: Any
    questions: Questions


def fit_generator(
    config: Any,
    log: InteractionLog,
    catalog: Catalog,
    *,
    seed: int,
    settings: Settings | None = None,
    start: HeadStart | None = None,
) -> Any:
    """Fit any generator, passing on what only those that take long can use."""
    if isinstance(config, Trainable):
        return config.train(log, catalog, seed=seed, settings=settings, start=start)
    return config.fit(log, catalog, seed=seed)
