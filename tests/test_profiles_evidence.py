"""Evidence: what a history says against a population whose shares are known by construction."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.data.facets import Column, expand, plan
from recsys.data.vocab import Vocab
from recsys.data.wording import GENRES
from recsys.profiles.evidence import Bounds, Evidence, collect
from recsys.profiles.population import Known, Population, thresholds
from recsys.tables import Catalog, Id, InteractionLog, Queries, query_histories

BOUNDS = Bounds()


def log_of(rows: list[tuple[Id, Id, float]]) -> InteractionLog:
    """Events (user, item, weight) in time order."""
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "weight"], orient="row")
    return InteractionLog.of(
        frame.with_columns(pl.col("weight").cast(pl.Float64), event=pl.lit("interaction"), ts=pl.int_range(pl.len()))
    )


def catalog_of(**columns: list[Any]) -> Catalog:
    n = len(next(iter(columns.values())))
    base = {"item_id": list(range(n)), "title": [f"T{i}" for i in range(n)], "text": [""] * n}
    return Catalog(pl.DataFrame(base | columns, strict=False))


def known_of(catalog: Catalog, log: InteractionLog, like_at: float | None = None, low: float | None = None) -> Known:
    return Known(Population.fit(log, catalog, like_at=like_at, dislike_at=low), catalog)


def of(known: Known, items: list[int], weights: list[float] | None = None) -> Evidence:
    """Evidence of one history, one event a second."""
    n = len(items)
    frame = pl.DataFrame(
        {
            "query_id": [1],
            "user_id": [1],
            "at": [n],
            "history": [items],
            "weights": [weights or [1.0] * n],
            "times": [list(range(n))],
            "request": [""],
        },
        schema_overrides={"history": pl.List(pl.Int64), "weights": pl.List(pl.Float64), "times": pl.List(pl.Int64)},
    )
    return collect(Queries(frame), known, BOUNDS)[0]


@pytest.fixture(scope="module")
def genres() -> Known:
    """40 items: 0-9 horror, 10-39 drama; the population takes each once, so horror's share is a quarter."""
    catalog = catalog_of(genres=[["Horror"]] * 10 + [["Drama"]] * 30, year=[1975] * 20 + [1995] * 20)
    return known_of(catalog, log_of([(100, i, 1.0) for i in range(40)]))


def test_lift_is_shrunk_towards_one_by_the_prior(genres: Known) -> None:
    evidence = of(genres, [0, 1, 2, 3, 4, 10])
    horror = evidence.tastes[0]
    expected = 6 * (10 + 1) / (40 + 2)
    assert (horror.attribute, horror.value, horror.n) == ("genres", "Horror", 5)
    assert horror.lift == pytest.approx((5 + 3) / (expected + 3), abs=0.005)


def test_support_names_the_latest_items_that_carry_the_value(genres: Known) -> None:
    assert of(genres, [0, 1, 2, 3, 4, 10]).tastes[0].items == (4, 3, 2)


def test_a_taste_for_a_decade_is_an_era(genres: Known) -> None:
    evidence = of(genres, [0, 1, 2, 3, 4, 10, 11, 12])
    assert [t.value for t in evidence.eras] == ["1970s"]
    assert "year" not in {t.attribute for t in evidence.tastes}


def test_who_chooses_as_the_population_does_has_no_tastes_but_common_values(genres: Known) -> None:
    evidence = of(genres, [0, 1, 10, 20, 21, 22, 30, 31])
    assert evidence.tastes == ()
    assert [t.value for t in evidence.common] == ["Drama", "Horror"]


def test_a_recent_shift_is_seen_against_the_events_before(genres: Known) -> None:
    evidence = of(genres, [10, 11, 12, 13, 14, 15, 16, 17, 0, 1, 2, 3, 4, 5, 6, 7])
    assert evidence.recent[0].value == "Horror"
    assert evidence.recent[0].n == 8


def test_a_steady_history_has_no_recent_shift(genres: Known) -> None:
    assert of(genres, [0, 10, 1, 11, 2, 12, 3, 13, 4, 14]).recent == ()


def test_dislikes_are_values_rated_low_oftener_than_the_rest() -> None:
    catalog = catalog_of(genres=[["Horror"]] * 10 + [["Drama"]] * 30)
    known = known_of(catalog, log_of([(100, i, float(1 + i % 5)) for i in range(40)]), like_at=4.0, low=2.0)
    evidence = of(known, [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17], [1.0, 1, 2, 1, 5, 5, 4, 5, 5, 4, 5, 5])
    assert [(t.value, t.n) for t in evidence.dislikes] == [("Horror", 4)]
    assert (evidence.liked, evidence.disliked, evidence.rated) == (8, 4, True)
    assert {i.item_id for i in evidence.anchors} <= set(range(10, 18))


def test_nobody_turns_to_what_they_rate_low_nor_by_two_events(genres: Known) -> None:
    catalog = catalog_of(genres=[["Horror"]] * 10 + [["Drama"]] * 30)
    known = known_of(catalog, log_of([(100, i, float(1 + i % 5)) for i in range(40)]), like_at=4.0, low=2.0)
    history = [10, 11, 12, 13, 14, 15, 16, 17, 0, 1, 2, 3]
    assert [t.value for t in of(known, history, [5.0] * 12).recent] == ["Horror"]
    disliking = of(known, history, [5.0] * 8 + [1, 2, 1, 1])
    assert ([t.value for t in disliking.dislikes], disliking.recent) == (["Horror"], ())
    assert of(genres, [10, 11, 12, 13, 0, 1]).recent == ()


def test_of_many_likes_two_are_too_few_to_be_a_taste() -> None:
    catalog = catalog_of(genres=[["Horror"]] * 2 + [["Drama"]] * 98)
    known = known_of(catalog, log_of([(100, i, 1.0) for i in range(100)]))
    assert [t.value for t in of(known, [0, 1, 10, 11, 12, 13]).tastes] == ["Horror"]
    assert of(known, [0, 1, *range(10, 20)]).tastes == ()
    assert [t.value for t in of(known, [0, 1, 0, *range(10, 20)]).tastes] == ["Horror"]


def test_what_came_up_once_is_usual_only_where_there_is_hardly_more(genres: Known) -> None:
    assert [t.value for t in of(genres, [0, 10]).usual] == ["Drama", "Horror"]
    assert [t.value for t in of(genres, [0, 10, 11, 12, 13]).usual] == ["Drama"]


def test_an_unrated_log_has_likes_only() -> None:
    log = log_of([(1, 1, 0.5), (1, 2, 9.0)])
    assert thresholds(log, "auto", "auto", rated=False) == (None, None)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 2, 3, 4, 5], (3.0, 1.0)), ([4, 4, 4, 4], (4.0, None)), ([1] + [5] * 11, (5.0, None))],
)
def test_automatic_thresholds_are_the_median_and_the_lowest_tenth(weights: list[float], expected: Any) -> None:
    assert thresholds(log_of([(1, i, w) for i, w in enumerate(weights)]), "auto", "auto", rated=True) == expected


def test_given_thresholds_stand() -> None:
    assert thresholds(log_of([(1, 1, 1.0)]), 4.5, None, rated=True) == (4.5, None)


def test_nothing_is_known_of_an_empty_history(genres: Known) -> None:
    assert of(genres, []) == Evidence()


def test_a_history_of_items_outside_the_catalog_is_empty(genres: Known) -> None:
    assert of(genres, [1000, 1001]) == Evidence()


def test_one_event_gives_no_taste_but_what_it_is(genres: Known) -> None:
    evidence = of(genres, [3])
    assert (evidence.events, evidence.tastes, evidence.recent, evidence.eras) == (1, (), (), ())
    assert [i.item_id for i in evidence.latest] == [3]
    assert [t.value for t in evidence.common] == ["Horror"]


def test_evidence_stays_bounded_for_five_thousand_events(genres: Known) -> None:
    evidence = of(genres, [i % 40 for i in range(5000)])
    assert evidence.events == 5000
    parts = (evidence.tastes, evidence.eras, evidence.common, evidence.recent, evidence.dislikes, evidence.anchors)
    assert all(len(part) <= 4 for part in parts)


def test_ties_break_by_name() -> None:
    catalog = catalog_of(genres=[["B", "A"]] * 10 + [["C"]] * 30)
    known = known_of(catalog, log_of([(100, i, 1.0) for i in range(40)]))
    assert [t.value for t in of(known, [0, 1, 2, 3]).tastes] == ["A", "B"]


def test_years_in_titles_are_read_where_there_is_no_column_of_years() -> None:
    titles = [f"Thing {i} ({1950 + 10 * (i % 3)})" for i in range(12)]
    known = known_of(catalog_of(title=titles), log_of([(1, i, 1.0) for i in range(12)]))
    assert [t.value for t in of(known, [0, 3, 6, 9]).eras] == ["1950s"]


def test_without_attributes_there_are_still_titles() -> None:
    known = known_of(catalog_of(title=[f"T{i}" for i in range(5)]), log_of([(1, i, 1.0) for i in range(5)]))
    evidence = of(known, [0, 1, 2])
    assert evidence.tastes == evidence.common == ()
    assert [i.title for i in evidence.latest] == ["T2", "T1", "T0"]


def _plan(**columns: list[Any]) -> dict[str, Column]:
    catalog = catalog_of(**columns)
    return {c.attribute: c for c in plan(catalog, pl.Series([1.0] * len(catalog)).to_numpy())}


def test_attributes_are_read_by_what_they_hold_and_a_bare_yes_or_no_not_at_all() -> None:
    n = 60
    plans = _plan(
        tags=[["x", "y"], ["x"], ["y"]] * (n // 3),
        brand=["Sony", "Acme"] * (n // 2),
        price=[float(i) + 0.5 for i in range(n)],
        players=[2, 4] * (n // 2),
        vegan=[0, 1] * (n // 2),
        stock=["yes", "No"] * (n // 2),
        sale=["true", "", None] * (n // 3),
        signed=[["y"], ["n"]] * (n // 2),
        rare=["1", "0"] * (n // 2),
        year=[1960 + i for i in range(n)],
        prose=[f"A long description of thing number {i}, which nobody would take for a name" for i in range(n)],
        sku=[f"SKU-{i}" for i in range(n)],
        serial=list(range(70_000, 70_000 + n)),
        nothing=[None] * n,
    )
    assert {name: c.kind for name, c in plans.items()} == {
        "tags": "value",
        "brand": "value",
        "price": "band",
        "players": "number",
        "year": "era",
    }


def test_text_that_holds_years_or_decades_is_an_era() -> None:
    assert _plan(release=["1994", "1995", "2001", "2001"])["release"].kind == "era"
    assert _plan(decade=["1990s", "1990s", "2000s", "2010s"])["decade"].kind == "era"


def test_only_the_first_column_of_years_is_kept() -> None:
    assert list(_plan(year=[1994, 1995, 2001], decade=["1990s", "1990s", "2000s"])) == ["year"]


def test_bands_hold_every_number_and_are_named_by_their_borders() -> None:
    catalog = catalog_of(price=[float(i) for i in range(1, 41)])
    columns = plan(catalog, pl.Series([1.0] * 40).to_numpy())
    facets = expand(catalog, Vocab.of_items(catalog), columns)
    assert len(facets) == 40
    assert facets["value"].unique(maintain_order=True).to_list() == [
        "under 10",
        "10 to 20",
        "20 to 30",
        "30+",
    ]


def test_missing_attributes_and_odd_numbers_give_no_facet() -> None:
    catalog = catalog_of(price=[None, float("nan"), float("inf"), *map(float, range(37))], year=[None, 0, *[1990] * 38])
    facets = expand(catalog, Vocab.of_items(catalog), plan(catalog, pl.Series([1.0] * 40).to_numpy()))
    assert facets.filter(attribute="price")["item"].min() == 3
    assert set(facets.filter(attribute="year")["value"]) == {"1990s"}


def test_a_value_of_one_item_or_of_every_item_says_nothing() -> None:
    catalog = catalog_of(tags=[["all", "a"], ["all", "a"], ["all", "b"], ["all", "b"], ["all", "lonely"]])
    known = known_of(catalog, log_of([(1, i, 1.0) for i in range(5)]))
    assert set(known.population.values["value"]) == {"a", "b"}


def test_shares_come_from_the_log_alone() -> None:
    catalog = catalog_of(genres=[["A"], ["A"], ["B"], ["B"]])
    values = known_of(catalog, log_of([(1, 0, 1.0), (1, 1, 1.0), (2, 2, 1.0), (2, 99, 1.0)])).population.values
    assert dict(values.select("value", "share").iter_rows()) == pytest.approx({"A": 3 / 5, "B": 2 / 5})


def test_usual_steps_need_several_people_and_more_than_chance() -> None:
    rows: list[tuple[Id, Id, float]] = []
    for user in range(40):
        rows += [(user, 0, 1.0), (user, 1, 1.0)] if user < 4 else [(user, 2 + user % 30, 1.0), (user, 40 + user, 1.0)]
    known = known_of(catalog_of(title=[f"T{i}" for i in range(90)]), log_of(rows))
    assert known.population.follows.rows() == [(0, 1, 4)]


def test_population_statistics_survive_saving(genres: Known, tmp_path: Path) -> None:
    genres.population.save(tmp_path)
    loaded = Known(Population.load(tmp_path), genres.catalog)
    assert of(loaded, [0, 1, 2, 3, 12]) == of(genres, [0, 1, 2, 3, 12])


def test_a_log_without_events_can_be_fitted() -> None:
    empty = InteractionLog(log_of([(1, 1, 1.0)]).frame.clear())
    assert of(known_of(catalog_of(genres=[["A"], ["A"], ["B"]]), empty), [0, 1]).events == 2


def test_the_hash_tells_evidence_apart_and_leaves_out_the_clock(genres: Known) -> None:
    first = of(genres, [0, 1, 2, 3])
    assert first.hash == of(genres, [0, 1, 2, 3]).hash
    assert first.hash != of(genres, [0, 1, 2, 4]).hash
    later = Evidence(**{name: getattr(first, name) for name in first.__dataclass_fields__} | {"first": 7, "last": 9})
    assert later.hash == first.hash


def test_the_hash_is_the_same_in_another_process() -> None:
    code = (
        "from recsys.profiles.evidence import Evidence, Item, Trait;"
        "print(Evidence(events=3, tastes=(Trait('g', 'É', 'value', 1.5, 2, (1, 2)),), anchors=(Item('x', 'T'),)).hash)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_batches_of_any_size_and_order_give_the_same_evidence(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_of(world.catalog, world.log, 4.0, 2.0)
    queries = Queries(query_histories(world.log).frame.head(60))
    whole = collect(queries, known, BOUNDS)
    assert [collect(single, known, BOUNDS)[0] for single in queries.batches(1)] == whole
    assert collect(Queries(queries.frame.reverse()), known, BOUNDS)[::-1] == whole
    monkeypatch.setattr("recsys.profiles.evidence._CHUNK", 7)
    assert collect(queries, known, BOUNDS) == whole


def test_the_worlds_tastes_are_found(known_world: Any) -> None:
    """The strongest genre found is mostly among the three that the user's hidden taste holds most beyond others'."""
    world = known_world.dataset
    known = known_of(world.catalog, world.log)
    shares = known_world.hidden_users.taste.mean(axis=1)
    liking = shares / shares.mean(axis=0)
    queries = query_histories(world.log)
    hits = []
    for user, evidence in zip(queries.frame["user_id"], collect(queries, known, BOUNDS), strict=True):
        tastes = [t.value for t in evidence.tastes if t.attribute == "genres"]
        if tastes and evidence.events >= 15:
            best = {GENRES[i].name for i in liking[user - 1].argsort()[-3:]}
            hits.append(tastes[0] in best)
    assert len(hits) > 100
    assert sum(hits) / len(hits) > 0.8
