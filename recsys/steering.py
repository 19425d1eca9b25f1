"""Do edits steer? Single edits are tried on sampled users, and their slates compared with and without.

An edit that asks for less of a value should leave fewer items that carry it in the slate, one that asks for more
should bring more; and the rest of the slate should stay in its order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import SpecError
from recsys.profiles.edits import Action, Edit, Edits
from recsys.profiles.population import Known
from recsys.profiles.wishes import Value
from recsys.recommender import Recommender
from recsys.tables import Id, Queries, Slates

ENOUGH = 20  # items of the catalog that must carry a value that is pinned
_COMPARABLE = 3  # items that two orders must share to be compared


@dataclass(frozen=True)
class Steering:
    """What became of sampled edits.

    rate        : share of the cases in which the share of matching items moved as asked
    by_action   : the same for "pin" and "forget"; those that there was no case of are left out
    correlation : mean over cases of Spearman's rank correlation, over the items of both slates that do not carry the
                  value; NaN where no case has three of them
    cases       : query_id, user_id, action, attribute, value, before and after (shares of matching items), moved,
                  common (items of both slates that do not carry the value), correlation (null where these are few)
    """

    rate: float
    by_action: Mapping[str, float]
    correlation: float
    cases: pl.DataFrame


def steering(
    recommender: Recommender, queries: Queries, known: Known, n: int = 200, seed: int = 0, k: int = 10
) -> Steering:
    """Try one edit for each of `n` users drawn by `seed` (all, where there are fewer), every second one a pin.

    Forgotten is a value that a user's slate holds, one of the user's tastes where one is in it; pinned is one that at
    least `ENOUGH` items carry and not the whole slate. Users whose slate offers no such value make no case. Edits that
    the recommender knows of already stay.

    Errors: `SpecError` where no case can be made.
    """
    named = queries.frame.filter(pl.col("user_id").is_not_null()).unique("user_id", keep="last", maintain_order=True)
    some = Queries(named.sample(min(n, len(named)), seed=seed, shuffle=True))
    before = recommender.recommend(some, k)
    chosen = _edits(recommender, some, before, known, np.random.default_rng(seed))
    if not chosen:
        raise SpecError("no edit can be tried: no user's slate has values to pin or to forget")
    users = dict(some.frame.select("query_id", "user_id").iter_rows())
    moments = dict(some.frame.select("query_id", "at").iter_rows())
    tried = recommender.edits
    for query, (action, value) in chosen.items():
        tried = tried.add(Edits.of(users[query], Edit(moments[query], action, *value)))
    asking = Queries(some.frame.filter(pl.col("query_id").is_in(list(chosen))))
    after = recommender.with_edits(tried).recommend(asking, k)
    old, new = _by_query(before), _by_query(after)
    carriers = {value: _carriers(value, known) for _, value in chosen.values()}
    rows = []
    for query, (action, value) in chosen.items():
        pair = (old[query], new.get(query, []))
        shares = [sum(item in carriers[value] for item in slate) / len(slate) if slate else 0.0 for slate in pair]
        own, others = ([item for item in slate if item not in carriers[value]] for slate in pair)
        common, correlation = _agreement(own, others)
        moved = shares[1] > shares[0] if action == "pin" else shares[1] < shares[0]
        rows.append((query, users[query], action, *value, *shares, moved, common, correlation))
    schema: dict[str, Any] = {
        **{name: some.frame.schema[name] for name in ("query_id", "user_id")},
        **dict.fromkeys(("action", "attribute", "value"), pl.String),
        **dict.fromkeys(("before", "after"), pl.Float64),
        **{"moved": pl.Boolean, "common": pl.Int64, "correlation": pl.Float64},
    }
    cases = pl.DataFrame(rows, schema=schema, orient="row")
    by_action = cases.group_by("action").agg(pl.col("moved").cast(pl.Float64).mean()).sort("action")
    compared = cases["correlation"].drop_nulls().to_numpy()
    return Steering(
        float(cases["moved"].to_numpy().mean()),
        dict(by_action.iter_rows()),
        float(compared.mean()) if len(compared) else float("nan"),
        cases,
    )


def _edits(
    recommender: Recommender, queries: Queries, slates: Slates, known: Known, rng: np.random.Generator
) -> dict[Id, tuple[Action, Value]]:
    """An edit for each query for which there is one to make, pins and forgets in turn."""
    values = known.population.values.select("facet", "attribute", "value")
    counts = known.facets.group_by("facet").len("carriers").join(values, on="facet")
    common = [
        Value(*row) for row in counts.filter(pl.col("carriers") >= ENOUGH).sort("facet").select(_NAME).iter_rows()
    ]
    lines = slates.frame.select("query_id", pl.Series("item", known.vocab.encode(slates.frame["item_id"])))
    held = lines.join(known.facets, on="item").join(values, on="facet").group_by("query_id", *_NAME).len("held")
    sizes = dict(slates.frame.group_by("query_id").len().iter_rows())
    present: dict[Id, dict[Value, int]] = {}
    for query, attribute, value, number in held.sort("query_id", *_NAME).iter_rows():
        present.setdefault(query, {})[Value(attribute, value)] = number
    tastes = _tastes(recommender, queries)
    found: dict[Id, tuple[Action, Value]] = {}
    for query in queries.frame["query_id"]:
        if query not in sizes:
            continue
        own = present.get(query, {})
        action: Action = "forget" if len(found) % 2 else "pin"
        open_ = [value for value in common if own.get(value, 0) < sizes[query]]
        choices = open_ if action == "pin" else [v for v in tastes.get(query, ()) if v in own] or list(own)
        if choices:
            found[query] = (action, choices[int(rng.integers(len(choices)))])
    return found


_NAME = ("attribute", "value")


def _tastes(recommender: Recommender, queries: Queries) -> dict[Id, Sequence[Value]]:
    """What the profile of each query says the user likes, read from its claims."""
    profiles = recommender.profiles.as_of(queries).frame
    return {
        query: [Value(*claim.split("|")[1:3]) for claim in claims if claim.startswith(("likes|", "era|"))]
        for query, claims in profiles.select("query_id", "claims").iter_rows()
    }


def _carriers(value: Value, known: Known) -> set[Id]:
    """The ids of the items that carry a value."""
    facets = known.population.values.filter(attribute=value.attribute, value=value.value)
    codes = known.facets.join(facets, on="facet", how="semi")["item"]
    return set(known.vocab.decode(codes.to_numpy()))


def _by_query(slates: Slates) -> dict[Id, list[Id]]:
    rows = slates.frame.sort("query_id", "rank").group_by("query_id", maintain_order=True).agg("item_id")
    return dict(rows.iter_rows())


def _agreement(before: Sequence[Id], after: Sequence[Id]) -> tuple[int, float | None]:
    """How many items two orders share, and how alike they order these, by Spearman's rank correlation."""
    both = [item for item in before if item in after]
    if len(both) < _COMPARABLE:
        return len(both), None
    ranks = np.argsort(np.argsort([after.index(item) for item in both]))
    return len(both), float(np.corrcoef(np.arange(len(both)), ranks)[0, 1])
