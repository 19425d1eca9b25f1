"""The items of a generated world: series, genres, popularity, and how one is drawn."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data import wording

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DECADES = (1970, 1980, 1990, 2000, 2010)
LAST_YEAR = 2018


@dataclass(frozen=True)
class Items:
    """The hidden side of the items; row = item code (the order of item_id).

    genre, second : (n_items,) main genre, and another or -1
    decade        : (n_items,) place in `DECADES`
    sequel        : (n_items,) code of the item that follows it, or -1
    popularity    : (n_items,) relative draw rate within a genre
    """

    genre: Ints
    second: Ints
    decade: Ints
    sequel: Ints
    popularity: Floats

    def in_genre(self) -> npt.NDArray[np.bool_]:
        """(n_items, n_genres): whether an item belongs to a genre."""
        genres = np.arange(len(wording.GENRES))
        return np.asarray((self.genre[:, None] == genres) | (self.second[:, None] == genres))


@dataclass(frozen=True)
class Cells:
    """Items laid out genre by genre, decade by decade, with running sums of popularity: one search draws an item."""

    entries: Ints  # (n_pairs,) item codes
    total: Floats  # (n_pairs + 1,) running sum of popularity
    bounds: Ints  # (n_genres, n_decades + 1): where each cell begins; the last column is the genre's end

    @classmethod
    def of(cls, items: Items) -> "Cells":
        item, genre = np.nonzero(items.in_genre())
        order = np.lexsort((items.decade[item], genre))
        item, cell = item[order], (genre * len(DECADES) + items.decade[item])[order]
        starts = np.searchsorted(cell, np.arange(len(wording.GENRES) * len(DECADES) + 1))
        begins = np.arange(len(wording.GENRES))[:, None] * len(DECADES) + np.arange(len(DECADES) + 1)
        return cls(item, np.concatenate([[0.0], np.cumsum(items.popularity[item])]), starts[begins])

    def ranges(self, genre: Ints, decade: Ints) -> tuple[Ints, Ints]:
        """First and last-plus-one entry of each cell; of the whole genre where decade is -1 or its cell is empty."""
        begin, end = self.bounds[genre, np.maximum(decade, 0)], self.bounds[genre, np.maximum(decade, 0) + 1]
        whole = (decade < 0) | (begin == end)
        return np.where(whole, self.bounds[genre, 0], begin), np.where(whole, self.bounds[genre, -1], end)

    def draw(self, rng: np.random.Generator, genre: Ints, decade: Ints) -> Ints:
        """An item of each cell, in proportion to popularity."""
        begin, end = self.ranges(genre, decade)
        point = self.total[begin] + rng.random(len(genre)) * (self.total[end] - self.total[begin])
        place = np.searchsorted(self.total, point, side="right") - 1
        return self.entries[np.clip(place, begin, end - 1)]


def genre_shares(items: Items) -> tuple[Floats, Floats]:
    """Probability of each item within a genre (n_genres, n_items), and within genre and decade (n_decades, ...)."""
    cells, n = Cells.of(items), len(items.genre)
    genres = np.arange(len(wording.GENRES))
    shares = np.zeros((len(DECADES) + 1, len(genres), n))
    for decade in range(-1, len(DECADES)):
        for genre, begin, end in zip(genres, *cells.ranges(genres, np.full(len(genres), decade)), strict=True):
            chosen = cells.entries[begin:end]
            shares[decade + 1, genre, chosen] = items.popularity[chosen] / items.popularity[chosen].sum()
    return shares[0], shares[1:]


def make_items(rng: np.random.Generator, n: int) -> tuple[Items, pl.DataFrame]:
    """Items in series of one to four, in random order of codes."""
    n_genres = len(wording.GENRES)
    sizes = rng.choice([1, 2, 3, 4], size=n, p=[0.55, 0.2, 0.15, 0.1])
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), n)) + 1]
    sizes[-1] -= sizes.sum() - n
    series = np.repeat(np.arange(len(sizes)), sizes)
    part = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rates = 1 / np.arange(2, n_genres + 2) ** 0.5  # some genres are larger than others
    of_series = rng.choice(n_genres, size=len(sizes), p=rates / rates.sum())
    of_series[:n_genres] = np.arange(n_genres)  # none is empty
    genre = of_series[series]
    other = rng.integers(0, n_genres, len(sizes))[series]
    second = np.where((rng.random(len(sizes)) < 0.4)[series] & (other != genre), other, -1)
    year = rng.integers(DECADES[0], DECADES[-1] + 5, len(sizes))[series] + part * rng.integers(1, 4, len(sizes))[series]
    year = np.minimum(year, LAST_YEAR)
    sequel = np.where(np.append(np.diff(series) == 0, False), np.arange(1, n + 1), -1)
    popularity: Floats = np.asarray((rng.permutation(n) + 5.0) ** -0.7 * np.where(part > 0, 0.3, 1.0), dtype=np.float64)

    place = rng.permutation(n)  # the code of each item
    order = np.argsort(place)
    hidden = Items(
        genre[order],
        second[order],
        ((year - DECADES[0]) // 10)[order],
        np.where(sequel >= 0, place[sequel], -1)[order],
        popularity[order],
    )
    names = np.array([g.name for g in wording.GENRES])
    decade = year[order] // 10 * 10
    width = len(str(n))
    frame = pl.DataFrame(
        {
            "item_id": [f"i{code:0{width}d}" for code in range(1, n + 1)],
            "title": wording.titles(rng, genre[order], series[order], part[order], year[order]),
            "genres": names[hidden.genre],
            "second": names[hidden.second],
            "has_second": hidden.second >= 0,
            "decade": decade,
            "year": year[order],
            "maker": wording.makers(rng, hidden.genre),
            "description": wording.descriptions(rng, hidden.genre, hidden.second, decade),
        }
    )
    both = pl.when("has_second").then(pl.format("{}|{}", "genres", "second")).otherwise("genres")
    return hidden, frame.with_columns(genres=both, decade=pl.format("{}s", "decade")).drop("second", "has_second")
