"""A generated world with known tastes: readable items, users who follow known probabilities, and these as the truth.

How the next event of a user comes about, exactly:

- with probability `FOLLOW`, where the last item has a sequel, it is that sequel;
- otherwise a genre is drawn from the user's taste, then (with probability `LOYAL`) only the user's own decade within
  it, then an item in proportion to its popularity;
- an item that the user has met is never drawn again (drawn anew until it is unseen).

Some users' tastes drift: from a moment on, one favourite genre is another. Ratings follow taste. The model is a plain
mixture, so that `World.next_probabilities` is exact.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data import wording
from recsys.data.files import atomic_folder
from recsys.data.ingest import Dataset, dataset_from_frames
from recsys.data.source import write_toml
from recsys.data.synthetic_items import DECADES, Cells, Floats, Ints, Items, genre_shares, make_items
from recsys.data.vocab import Vocab
from recsys.errors import SpecError
from recsys.tables import Queries

FOLLOW = 0.6
LOYAL = 0.6
END = 1_700_000_000  # the last event lies before this moment, in November 2023
MAX_EVENTS = 400  # of one user
LICENCE = "Apache-2.0; generated, no real people or works"
TRIES = 300  # draws of an unseen item before a user is taken to have seen all they care for


@dataclass(frozen=True)
class Users:
    """The hidden side of the users; row = user_id - 1.

    taste  : (n_users, 2, n_genres) probabilities of genres, before and after the drift
    drift  : (n_users,) number of events after which the second taste holds
    decade : (n_users,) the decade they are loyal to
    length : (n_users,) events wished for
    """

    taste: npt.NDArray[np.float32]
    drift: Ints
    decade: Ints
    length: Ints


@dataclass(frozen=True)
class World:
    """Frames in the public dataset format, and the truth that they were drawn from."""

    name: str
    origin: str
    interactions: pl.DataFrame
    items: pl.DataFrame
    hidden_items: Items
    hidden_users: Users

    @cached_property
    def dataset(self) -> Dataset:
        """The world as the line reads it."""
        return dataset_from_frames(self.name, self.interactions, self.items)

    def next_probabilities(self, queries: Queries) -> Floats:
        """True probability of each item as the next event of each query: (len(queries), n_items), rows add up to 1.

        Exact where a query's history is all that its user did before. Columns are in the order of item_id, which is
        the order of the catalog and of its vocabulary.
        """
        histories = Vocab.of_items(self.dataset.catalog).histories(queries)
        users = queries.frame["user_id"].to_numpy() - 1
        lengths = np.diff(histories.indptr)
        last = np.full(len(queries), -1)
        last[lengths > 0] = histories.items[histories.indptr[1:][lengths > 0] - 1]
        items, late = self.hidden_items, (lengths >= self.hidden_users.drift[users]).astype(int)
        taste = self.hidden_users.taste[users, late].astype(np.float64)
        wide, narrow = genre_shares(items)
        loyal = narrow[self.hidden_users.decade[users]]  # (n_queries, n_genres, n_items)
        free = np.einsum("qg,qgi->qi", taste, (1 - LOYAL) * wide[None] + LOYAL * loyal)
        follows = np.zeros_like(free)
        has_sequel = (last >= 0) & (items.sequel[last] >= 0)
        follows[has_sequel, items.sequel[last[has_sequel]]] = 1.0
        share = (FOLLOW * has_sequel)[:, None]
        chances = share * follows + (1 - share) * free
        chances[histories.rows(), histories.items] = 0.0
        return np.asarray(chances / chances.sum(axis=1, keepdims=True))


def make_world(n_users: int, n_items: int, n_events: int, seed: int, *, name: str = "synthetic") -> World:
    """Generate a world. Users are integers from 1, items are strings ("i0042").

    The number of events is exact, unless a user runs out of items within reach of their taste.

    Errors: `SpecError` for numbers that no world can have.
    """
    genres = len(wording.GENRES)
    if n_users < 1 or n_items < 2 * genres or not 3 * n_users <= n_events <= n_users * min(n_items // 3, MAX_EVENTS):
        most = n_users * min(n_items // 3, MAX_EVENTS)
        raise SpecError(
            f"synth: {n_users} users, {n_items} items, {n_events} events: needs at least 1 user, {2 * genres} items, "
            f"and 3 events a user ({3 * n_users}) to a third of the items or {MAX_EVENTS} a user ({most})"
        )
    rng = np.random.default_rng(seed)
    items, titled = make_items(rng, n_items)
    users = _make_users(rng, n_users, n_items, n_events)
    user, item, step = _walk(rng, users, items)
    rating = _ratings(rng, users, items, user, item, step)
    ts = _times(rng, user)
    log = pl.DataFrame({"user_id": user + 1, "item": item, "rating": rating, "timestamp": ts}).sort(
        "timestamp", "user_id"
    )
    ids = titled["item_id"]
    log = log.select("user_id", ids.gather(log["item"]).alias("item_id"), "rating", "timestamp")
    origin = f"recsys data synth --users {n_users} --items {n_items} --events {n_events} --seed {seed}"
    return World(name, origin, log, titled, items, users)


def write_world(world: World, out: Path, *, form: Literal["parquet", "csv"], replace: bool = False) -> None:
    """Write a world as a dataset folder (not the hidden truth: the same numbers and seed give it again).

    Errors: `StorageError` where `out` is taken or cannot be written.
    """
    with atomic_folder(out, replace=replace) as folder:
        for stem, frame in (("interactions", world.interactions), ("items", world.items)):
            if form == "csv":
                frame.write_csv(folder / f"{stem}.csv")
            else:
                frame.write_parquet(folder / f"{stem}.parquet")
        write_toml(folder / "dataset.toml", name=world.name, licence=LICENCE, origin=world.origin)


def _make_users(rng: np.random.Generator, n: int, n_items: int, n_events: int) -> Users:
    n_genres = len(wording.GENRES)
    favourites = rng.random((n, n_genres)).argpartition(2, axis=1)[:, :3]  # first, second, and the one to come
    shares = np.array([0.6, 0.3])
    rows = np.arange(n)[:, None]
    taste = np.full((n, 2, n_genres), (1 - shares.sum()) / n_genres, dtype=np.float32)
    taste[rows, 0, favourites[:, :2]] += shares
    taste[rows, 1, favourites[:, [2, 1]]] += shares
    activity = rng.lognormal(0.0, 0.8, n)
    length = _lengths(activity, n_events, min(n_items // 3, MAX_EVENTS))
    drifts = rng.random(n) < 0.3
    drift = np.where(drifts, (length * rng.uniform(0.3, 0.7, n)).astype(np.int64), MAX_EVENTS + 1)
    return Users(taste, drift, rng.integers(0, len(DECADES), n), length)


def _lengths(activity: Floats, total: int, most: int) -> Ints:
    """Whole numbers from 3 to `most`, in proportion to activity, that add up to `total`."""
    low, high = 0.0, float(total) * most
    for _ in range(100):  # bisection on the scale
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(activity * middle, 3, most).sum() < total else (low, middle)
    length = np.clip(activity * low, 3, most).astype(np.int64)
    room = np.flatnonzero(length < most)
    length[room[: total - int(length.sum())]] += 1
    return length


def _walk(rng: np.random.Generator, users: Users, items: Items) -> tuple[Ints, Ints, Ints]:
    """Every user's events: user code, item code, step; ordered by user, then step."""
    cells = Cells.of(items)
    taste = np.cumsum(users.taste, axis=2, dtype=np.float32)
    order = np.argsort(-users.length, kind="stable")  # the users still active at a step are a prefix of this
    lengths = users.length[order]
    past: list[npt.NDArray[np.int32]] = []
    for step in range(int(lengths.max())):
        active = order[: int(np.searchsorted(-lengths, -step, side="left"))]
        items_now = np.full(len(active), -1, dtype=np.int32)
        waiting = np.arange(len(active))
        if past:
            waiting = waiting[past[-1][: len(active)] >= 0]  # who found nothing new at the last step has stopped
        for _ in range(TRIES):
            last = past[-1][waiting] if past else np.full(len(waiting), -1)
            drawn = _propose(rng, users, items, cells, taste, active[waiting], last, step)
            seen = np.zeros(len(waiting), dtype=np.bool_)
            for earlier in past:
                seen |= earlier[waiting] == drawn
            items_now[waiting[~seen]] = drawn[~seen]
            waiting = waiting[seen]
            if not len(waiting):
                break
        past.append(items_now)
    starts = np.cumsum(users.length) - users.length
    item = np.full(int(users.length.sum()), -1, dtype=np.int32)
    for step, items_now in enumerate(past):
        item[starts[order[: len(items_now)]] + step] = items_now
    user = np.repeat(np.arange(len(users.length)), users.length)
    met = item >= 0
    return user[met], item[met].astype(np.int64), (np.arange(len(item)) - starts[user])[met]


def _propose(
    rng: np.random.Generator,
    users: Users,
    items: Items,
    cells: Cells,
    taste: npt.NDArray[np.float32],
    who: Ints,
    last: npt.NDArray[np.integer],
    step: int,
) -> Ints:
    """One draw of the next item of each user in `who`, seen or not. `taste` holds running sums."""
    late = (step >= users.drift[who]).astype(np.int64)
    point = rng.random(len(who), dtype=np.float32)[:, None]
    genre = np.minimum((point > taste[who, late]).sum(axis=1), taste.shape[2] - 1)
    decade = np.where(rng.random(len(who)) < LOYAL, users.decade[who], -1)
    free = cells.draw(rng, genre, decade)
    sequel = np.where(last >= 0, items.sequel[last], -1)
    return np.where((sequel >= 0) & (rng.random(len(who)) < FOLLOW), sequel, free)


def _ratings(
    rng: np.random.Generator, users: Users, items: Items, user: Ints, item: Ints, step: Ints
) -> npt.NDArray[np.int8]:
    """1 to 5: high for favourite genres, a little higher for the user's decade, with noise."""
    taste = users.taste[user, (step >= users.drift[user]).astype(np.int64)]
    rows = np.arange(len(user))
    second = items.second[item]
    match = np.maximum(taste[rows, items.genre[item]], np.where(second >= 0, taste[rows, second], 0.0))
    worth = 1.9 + 3.5 * match + 0.5 * (items.decade[item] == users.decade[user])
    rounded: npt.NDArray[np.int8] = np.clip(np.rint(worth + rng.normal(0.0, 0.7, len(user))), 1, 5).astype(np.int8)
    return rounded


def _times(rng: np.random.Generator, user: Ints) -> Ints:
    """Strictly rising Unix seconds within each user: sittings of an hour or so, days apart."""
    first = np.append(True, np.diff(user) != 0)
    pause = rng.lognormal(np.log(2 * 86_400), 1.0, len(user))
    gap = np.where(rng.random(len(user)) < 0.3, pause, rng.uniform(60, 3_600, len(user))).astype(np.int64)
    gap[first] = 0
    elapsed = np.cumsum(gap)
    elapsed -= np.repeat(elapsed[first], np.diff(np.append(np.flatnonzero(first), len(user))))
    total = np.append(elapsed[np.flatnonzero(first)[1:] - 1], elapsed[-1])
    begin = END - total - rng.integers(1, 3 * 365 * 86_400, len(total))
    return np.asarray(elapsed + np.repeat(begin, np.diff(np.append(np.flatnonzero(first), len(user)))))
