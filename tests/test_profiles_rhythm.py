"""How often a user comes back: told where it is far from what others do, never where times say nothing."""

from pathlib import Path

import polars as pl
import pytest

from recsys.profiles import EvidenceProfiles, ProfilesConfig
from recsys.profiles.diff import diff
from recsys.profiles.edits import Edit, Edits, explain, value_of, wishes
from recsys.profiles.evidence import Bounds, Evidence, Trait, collect
from recsys.profiles.faithful import Checker
from recsys.profiles.fresh import Living
from recsys.profiles.phrases import Phrases
from recsys.profiles.population import Known, Population
from recsys.profiles.rhythm import DAY, OFTEN, PACE, SELDOM, Paces
from recsys.profiles.template import profile
from recsys.tables import Catalog, InteractionLog, Queries, query_histories

GAPS = {f"u{k:02}": gap for k, gap in enumerate([1] * 4 + [5] * 32 + [30] * 4)}  # days between the visits of each
CATALOG = Catalog(
    pl.DataFrame(
        {
            "item_id": list(range(40)),
            "title": [f"T{i}" for i in range(40)],
            "text": "",
            "genres": [["Horror", "Drama"][i % 2 : i % 2 + 1] for i in range(40)],
        }
    )
)


def log_of(gaps: dict[str, int], visits: int = 8, second: int = DAY) -> InteractionLog:
    """Two events on each visit, a minute apart."""
    rows = [
        (user, (7 * place + 3 * visit + k) % 40, visit * gap * second + 60 * k)
        for place, (user, gap) in enumerate(gaps.items())
        for visit in range(visits)
        for k in range(2)
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "ts"], orient="row")
    return InteractionLog.of(frame.with_columns(event=pl.lit("x"), weight=pl.lit(1.0)))


def fitted(log: InteractionLog) -> EvidenceProfiles:
    return ProfilesConfig(personas=0).fit(log, CATALOG, rated=False, seed=0)


@pytest.fixture(scope="module")
def profiles() -> EvidenceProfiles:
    return fitted(log_of(GAPS))


def by_user(profiles: EvidenceProfiles, log: InteractionLog) -> dict[str, Evidence]:
    queries = query_histories(log)
    return dict(zip(queries.frame["user_id"], profiles.evidence(queries), strict=True))


def test_who_comes_back_far_more_or_less_often_than_the_middle_is_told_so(profiles: EvidenceProfiles) -> None:
    found = by_user(profiles, log_of(GAPS))
    assert found["u00"].rhythm == (Trait(PACE, OFTEN, PACE, 5.0, 8),)
    assert found["u39"].rhythm == (Trait(PACE, SELDOM, PACE, 0.17, 8),)
    assert {user for user, e in found.items() if e.rhythm} == {u for u, gap in GAPS.items() if gap != 5}
    text, claims = profile(found["u00"], profiles.phrases)
    assert "You are here more often than most people." in text
    assert "pace|pace|often|lift=5.0|n=8" in claims


@pytest.mark.parametrize(
    "log",
    [log_of(GAPS, second=0), log_of(GAPS, second=100), log_of(dict.fromkeys(GAPS, 5)), log_of(GAPS, visits=3)],
    ids=["one moment", "one sitting", "all alike", "few visits"],
)
def test_nothing_is_said_where_times_tell_nobody_from_anybody(log: InteractionLog) -> None:
    assert not any(e.rhythm for e in by_user(fitted(log), log).values())


def test_few_people_are_no_yardstick() -> None:
    log = log_of({"a": 1, "b": 5, "c": 30})
    assert fitted(log).known.population.paces == Paces()
    assert not any(e.rhythm for e in by_user(fitted(log), log).values())


def test_where_most_came_once_nobody_is_said_to_come_seldom() -> None:
    """Who comes once in thirty days comes more often than they do."""
    once = {f"once{k}": 0 for k in range(30)}
    log = log_of({**once, **{user: gap for user, gap in GAPS.items() if gap != 5}, "five": 5})
    told = {user: e.rhythm[0].value for user, e in by_user(fitted(log), log).items() if e.rhythm}
    assert told == dict.fromkeys(("u00", "u01", "u02", "u03"), OFTEN)


def test_only_what_was_before_the_moment_counts(profiles: EvidenceProfiles) -> None:
    """Somebody who came every day, and then stayed away: as of before, it is not known yet."""
    log = log_of(GAPS)
    late = pl.DataFrame({"user_id": "u00", "item_id": 1, "ts": 400 * DAY, "event": "x", "weight": 1.0})
    both = InteractionLog(pl.concat([log.frame, late.select(log.frame.columns)], how="vertical_relaxed"))
    assert by_user(profiles, both)["u00"].rhythm[0].value == SELDOM
    assert by_user(profiles, log)["u00"].rhythm[0].value == OFTEN


@pytest.mark.parametrize("n", [2, 3, 7])
def test_updates_count_a_day_once(profiles: EvidenceProfiles, n: int) -> None:
    """Also where a day's events come in two updates."""
    log, known, bounds = log_of(GAPS), profiles.known, Bounds()
    place = pl.int_range(pl.len()).over("user_id")
    frame = log.frame.with_columns(part=place * n // pl.len().over("user_id"))
    first, *rest = (InteractionLog(frame.filter(part=i).drop("part")) for i in range(n))
    living = Living.of(first, known, bounds, lambda some: [""] * len(some))
    for new in rest:
        living, _ = living.update(new, known, bounds, lambda some: [""] * len(some), refresh=0.0)
    assert dict(zip(living.users, living.evidence, strict=True)) == by_user(profiles, log)


@pytest.mark.parametrize("name", ["phrases", "phrases-playful"])
@pytest.mark.parametrize("part", ["pace", "reach"])
def test_the_checker_knows_of_whom_a_sentence_of_the_wording_is_true(
    profiles: EvidenceProfiles, name: str, part: str
) -> None:
    phrases = Phrases.read(name)
    checker = Checker.of(profiles.known, phrases, "")
    values = {"pace": (OFTEN, SELDOM), "reach": ("popular", "lesser-known")}[part]
    field = {"pace": "rhythm", "reach": "reach"}[part]
    for value in values:
        kind = f"{part}-{value}"
        for sentence in phrases.kinds[kind]:
            for true in (*values, None):
                told = () if true is None else (Trait(part, true, part, 2.0, 9),)
                reading = checker.read(sentence, Evidence(events=16, liked=16, **{field: told}))
                assert [claim.kind for claim in reading.claims] == ["wording"]
                assert reading.claims[0].supported == (true == value)
                assert (reading.faults[0] is None) == (true == value)


def test_a_change_of_rhythm_is_told_in_words() -> None:
    often, seldom = (Evidence(events=9, rhythm=(Trait(PACE, v, PACE, 2.0, 9),)) for v in (OFTEN, SELDOM))
    assert diff(often, seldom) == [
        "you now come back less often than most",
        "you no longer come back more often than most",
    ]
    stronger = Evidence(events=9, rhythm=(Trait(PACE, OFTEN, PACE, 3.0, 9),))
    assert diff(often, stronger) == []


def test_what_was_saved_before_there_was_a_rhythm_still_loads(profiles: EvidenceProfiles, tmp_path: Path) -> None:
    known = profiles.known
    known.population.save(tmp_path)
    assert Population.load(tmp_path).paces == known.population.paces != Paces()
    head = (tmp_path / "population.json").read_text()
    start, end = head.index('"paces"'), head.index('"columns"')
    (tmp_path / "population.json").write_text(head[:start] + head[end:])
    old = Known(Population.load(tmp_path), CATALOG)
    found = collect(query_histories(log_of(GAPS)), old, Bounds())
    assert not any(e.rhythm for e in found)
    assert Evidence.read(found[0].json.replace('"rhythm":[],', "")) == found[0]


@pytest.mark.parametrize("wording", ["phrases", "phrases-playful", "phrases-de"])
def test_a_user_may_have_it_forgotten(wording: str) -> None:
    """It is about no value of the catalog, so it asks nothing of a ranking."""
    log = log_of(GAPS)
    profiles = ProfilesConfig(personas=0, wording=wording).fit(log, CATALOG, rated=False, seed=0)
    told = value_of("Pace", profiles.listener, profiles.config.sensitive)
    edit = Edit(0, "forget", *told)
    assert wishes([edit], profiles.listener) == []
    assert explain(edit, profiles.listener) == "does not count on how often they come back"
    queries = Queries(query_histories(log).frame.filter(user_id="u00"))
    after = profiles.with_edits(Edits.of("u00", edit))
    assert [e.rhythm for e in after.evidence(queries)] == [()]
    before, text = (one.as_of(queries).frame["text"][0] for one in (profiles, after))
    said = profiles.phrases.kinds["pace-often"][0]
    assert said in before
    assert said not in text
    assert profiles.phrases.words["pace"] in text
    back = after.with_edits(Edits.of("u00", edit, Edit(0, "withdraw", *told)))
    assert back.as_of(queries).frame["text"][0] == before
    claims = after.as_of(queries).frame["claims"][0].to_list()
    print(diff(profiles.as_of(queries).frame["claims"][0].to_list(), claims, titles={}, noun="choice"))
