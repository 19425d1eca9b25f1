"""An experiment on made-up people (`simulate`): exposures as a real one writes them, and the truth beside them.

Everybody is shown both sides in the model, so the true effect is known; the rows hold only the side that each was
assigned to. So a plan can be tried before anyone is waited for, and a new ranker's slates before they meet people.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Protocol

import numpy as np
import polars as pl

from recsys.errors import DataError, SpecError
from recsys.experiment.design import Experiment
from recsys.experiment.moments import Floats
from recsys.experiment.simulate import Ints, People, Softmax

START = date(2026, 1, 1)


class Shows(Protocol):
    """Who fills slates."""

    def draw(self, users: Ints, k: int, rng: np.random.Generator) -> Ints:
        """(sessions, k) items."""

    def chances(self, users: Ints, slates: Ints) -> Floats:
        """(sessions, k) of each item at its place, given those above it."""


@dataclass(frozen=True)
class Fixed:
    """The slates that a ranker gave: (users, k) items."""

    slates: Ints

    def draw(self, users: Ints, k: int, rng: np.random.Generator) -> Ints:
        """(sessions, k) items. Errors: `SpecError` where slates are shorter."""
        if self.slates.shape[1] < k:
            raise SpecError(f"slates hold {self.slates.shape[1]} items, fewer than {k}")
        return self.slates[users, :k]

    def chances(self, users: Ints, slates: Ints) -> Floats:
        """Ones."""
        return np.ones(slates.shape)


@dataclass(frozen=True)
class Trial:
    """rows : an exposure each: the plan's unit, variant and time, session, item_id, rank, propensity, clicks (0 or 1),
    impressions (1), pre_clicks (the user's, before); truth : a variant's mean clicks a session, over everybody."""

    rows: pl.DataFrame
    truth: Mapping[str, float]


def rankers(people: People, plan: Experiment, lift: float, seed: int = 0) -> dict[str, Softmax]:
    """For each variant one that knows tastes with some error: the treatments' error is smaller by the share `lift`."""
    rng = np.random.default_rng((seed, 0))
    known = np.log(people.likes / (1 - people.likes))
    error = rng.normal(0, 2.0, known.shape)
    return {
        name: Softmax(known + error * (1.0 if name == plan.control else 1.0 - lift), temperature=0.3)
        for name in plan.shares
    }


def trial(
    plan: Experiment,
    people: People,
    shows: Mapping[str, Shows],
    *,
    days: int = 14,
    sessions: float = 0.5,
    k: int = 10,
    seed: int = 0,
    ids: tuple[pl.Series, pl.Series] | None = None,
) -> Trial:
    """Run it. sessions : of a user, a day; ids : of users and items, numbers from 0 else.

    Errors: `SpecError` for a variant without a ranker.
    """
    if lacking := [name for name in plan.shares if name not in shows]:
        raise SpecError(f"variant '{lacking[0]}' has nobody who fills its slates; there are {', '.join(shows)}")
    if k > people.likes.shape[1]:
        raise SpecError(f"a slate of {k} needs as many items; there are {people.likes.shape[1]}")
    rng = np.random.default_rng((seed, 1))
    users, items = ids or (pl.Series(np.arange(len(people.likes))), pl.Series(np.arange(people.likes.shape[1])))
    visits = rng.poisson(sessions, (days, len(users)))
    day, who = (np.repeat(x, visits.ravel()) for x in np.indices(visits.shape).reshape(2, -1))
    if not len(who):
        raise SpecError("nobody came: more users, days or sessions")
    before = np.repeat(np.arange(len(users)), rng.poisson(sessions * days, len(users)))
    control = shows[plan.control]
    earlier = people.click(before, control.draw(before, k, rng), rng).sum(axis=1)
    pre = np.bincount(before, weights=earlier, minlength=len(users))
    variant = np.array(plan.assign(users.to_list()), dtype=object)
    parts, truth = [], {}
    for name in plan.shares:
        slates = shows[name].draw(who, k, rng)
        clicks = people.click(who, slates, rng)
        truth[name] = float(clicks.sum(axis=1).mean())
        own = np.flatnonzero(variant[who] == name)
        parts.append((own, slates[own], clicks[own], shows[name].chances(who[own], slates[own])))
    session, slates, clicks, chances = (np.concatenate([part[i] for part in parts]) for i in range(4))
    row_user = np.repeat(who[session], k)
    frame = pl.DataFrame(
        {
            plan.unit: users.gather(row_user),
            plan.variant: pl.Series(variant[row_user].tolist(), dtype=pl.String),
            plan.time or "ts": pl.Series(np.repeat(day[session] + (START - date(1970, 1, 1)).days, k)).cast(pl.Date),
            "session": np.repeat(session, k),
            "item_id": items.gather(slates.ravel()),
            "rank": np.tile(np.arange(1, k + 1), len(session)),
            "propensity": chances.ravel(),
            "clicks": clicks.ravel().astype(np.int8),
            "impressions": np.ones(clicks.size, dtype=np.int8),
            "pre_clicks": pre[row_user],
        }
    )
    return Trial(frame.sort("session", "rank"), truth)


def people_of(likes: pl.DataFrame) -> tuple[People, tuple[pl.Series, pl.Series]]:
    """Of rows user_id, item_id, chance (to click what is looked at; 0 where there is no row), and their ids.

    Errors: `DataError` naming a missing column or the row whose chance is none.
    """
    if lacking := [c for c in ("user_id", "item_id", "chance") if c not in likes.columns]:
        raise DataError(f"likes: no column '{lacking[0]}'")
    wrong = likes.filter(~pl.col("chance").is_between(0, 1).fill_null(False))
    if wrong.height:
        raise DataError(f"likes: chance of user {wrong['user_id'][0]}, item {wrong['item_id'][0]} is not in [0, 1]")
    users, items = likes["user_id"].unique().sort(), likes["item_id"].unique().sort()
    chances = np.zeros((len(users), len(items)))
    chances[_codes(users, likes["user_id"]), _codes(items, likes["item_id"])] = likes["chance"].to_numpy()
    return People(chances), (users, items)


def fixed_of(slates: pl.DataFrame, ids: tuple[pl.Series, pl.Series], name: str) -> Fixed:
    """Of rows user_id, item_id, rank, as a batch job writes them. Errors: `DataError` for who or what is not known."""
    users, items = ids
    if lacking := [c for c in ("user_id", "item_id", "rank") if c not in slates.columns]:
        raise DataError(f"slates of {name}: no column '{lacking[0]}'")
    for column, ids_known in (("user_id", users), ("item_id", items)):
        if slates[column].dtype != ids_known.dtype:
            raise DataError(
                f"slates of {name}: '{column}' holds {slates[column].dtype}, in the likes it is {ids_known.dtype}"
            )
    known = slates.filter(pl.col("user_id").is_in(users.implode()))
    if len(strange := known.filter(~pl.col("item_id").is_in(items.implode()))):
        raise DataError(
            f"slates of {name}: the likes say nothing of item {strange['item_id'][0]}; give it a chance of 0"
        )
    listed = known.sort("user_id", "rank").group_by("user_id", maintain_order=True).agg("item_id").sort("user_id")
    if len(missing := users.filter(~users.is_in(listed["user_id"].implode()))):
        raise DataError(f"slates of {name}: none for user {missing[0]}, whose likes are given")
    k = int(listed["item_id"].list.len().min())  # type: ignore[arg-type]  # of whole numbers
    rows = listed["item_id"].list.head(k).explode()
    return Fixed(_codes(items, rows).reshape(len(users), k).astype(np.int64))


def _codes(ids: pl.Series, values: pl.Series) -> Ints:
    return ids.search_sorted(values).to_numpy().astype(np.int64)
