"""Off-policy estimates and interleaving, against made-up users whose truth is known."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from recsys.errors import DataError, SpecError
from recsys.experiment.interleave import Shown, optimized, preference, probabilistic, sessions_needed, team_draft
from recsys.experiment.offpolicy import Estimator, Logged, compare, value_of
from recsys.experiment.simulate import People, Softmax

PEOPLE = People.made(users=40, items=12, seed=1)
OLD = Softmax(0.5 * np.log(PEOPLE.likes / (1 - PEOPLE.likes)))
NEW = Softmax(np.log(PEOPLE.likes / (1 - PEOPLE.likes)))
EVERYBODY = np.arange(40)


def logged(seed: int, n: int = 2000, k: int = 1, people: People = PEOPLE, old: Softmax = OLD) -> Logged:
    """With a model that knows tastes roughly."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 40, n)
    slates = old.draw(users, k, rng)
    rough = np.clip(people.likes + 0.1 * np.random.default_rng(9).normal(size=people.likes.shape), 0, 1)
    wanted = (NEW.firsts(users) * rough[users]).sum(axis=1, keepdims=True)
    shown = np.take_along_axis(rough[users], slates, axis=1)
    model: dict[str, Any] = {"shown": shown, "wanted": wanted} if k == 1 else {}
    chances = old.chances(users, slates), NEW.chances(users, slates)
    return Logged(people.click(users, slates, rng), *chances, cluster=users if seed % 2 else None, **model)


def truth(k: int, people: People = PEOPLE, n: int = 200_000) -> float:
    """What the new policy earns, over many draws of its slates."""
    users = np.random.default_rng(5).integers(0, 40, n)
    return float(people.expected(users, NEW.draw(users, k, np.random.default_rng(6))).sum(axis=1).mean())


def test_the_chances_that_a_policy_states_are_those_that_it_draws_with() -> None:
    rng = np.random.default_rng(0)
    slates = OLD.draw(np.zeros(40_000, dtype=np.int64), 2, rng)
    firsts = OLD.firsts(np.zeros(1, dtype=np.int64))[0]
    counts = np.bincount(slates[:, 0], minlength=12)
    assert stats.chisquare(counts, firsts * 40_000).pvalue > 0.001
    pairs, seen = np.unique(slates, axis=0, return_counts=True)
    chances = OLD.chances(np.zeros(len(pairs), dtype=np.int64), pairs).prod(axis=1)
    assert chances.sum() == pytest.approx(1)
    assert stats.chisquare(seen, chances * 40_000).pvalue > 0.001


@pytest.mark.parametrize("model", ["position", "cascade"])
def test_users_click_as_they_are_said_to(model: Any) -> None:
    people = People(PEOPLE.likes, model=model)
    slate = np.array([3, 1, 7, 5])
    users, slates = np.full(60_000, 2), np.tile(slate, (60_000, 1))
    clicks = people.click(users, slates, np.random.default_rng(0)).mean(axis=0)
    np.testing.assert_allclose(clicks, people.expected(users[:1], slates[:1])[0], atol=0.01)


def test_who_sees_the_same_again_is_tired_of_it_and_who_liked_it_trusts_the_list() -> None:
    users, slates = np.zeros(400, dtype=np.int64), np.tile(np.arange(5), (400, 1))
    tired = People(np.full((1, 5), 0.5), fatigue=0.05).click(users, slates, np.random.default_rng(0)).sum(axis=1)
    assert tired[:20].mean() > 3 * tired[-200:].mean()
    likes = People(np.full((1, 5), 0.9), patience=0.5), People(np.full((1, 5), 0.9), patience=0.5, trust=1.0)
    plain, trusting = (p.click(users, slates, np.random.default_rng(0))[50:, 4].mean() for p in likes)
    assert trusting > plain + 0.1


@pytest.mark.parametrize("estimator", ["ips", "snips", "dr", "switch-dr"])
def test_intervals_cover_the_truth(estimator: Estimator) -> None:
    found = [value_of(logged(seed), estimator, switch=1e9) for seed in range(200)]
    true = truth(1)
    covered = sum(v.ci[0] <= true <= v.ci[1] for v in found)
    assert stats.binom.ppf(0.002, 200, 0.95) <= covered
    assert np.mean([v.value for v in found]) == pytest.approx(true, abs=0.01)


def test_a_model_takes_error_away_and_alone_is_biased() -> None:
    true = truth(1)
    errors = {
        name: np.array([value_of(logged(seed), name).value - true for seed in range(100)])  # type: ignore[arg-type]
        for name in ("ips", "dr", "dm")
    }
    assert (errors["dr"] ** 2).mean() < (errors["ips"] ** 2).mean()
    assert abs(errors["dm"].mean()) > 3 * abs(errors["dr"].mean())


def test_slates_by_what_clicks_depend_on() -> None:
    """RIPS is right where clicks depend on what is above, with less error than whole slates."""
    people = People(PEOPLE.likes, model="cascade")
    true = truth(3, people)
    found = {
        name: np.array([value_of(logged(s, 3000, 3, people), name).value for s in range(60)])  # type: ignore[arg-type]
        for name in ("ips", "rips")
    }
    assert found["rips"].mean() == pytest.approx(true, abs=0.02)
    assert found["rips"].std() < found["ips"].std()


def test_cascade_dr_with_a_model_that_knows_all_has_little_left_to_err() -> None:
    """Two places; a session's second click depends on the first; expectations by enumeration."""
    likes = np.array([[0.6, 0.3, 0.1]])
    people = People(likes, model="cascade", patience=0.8, content=0.5)
    old, new = Softmax(np.zeros((1, 3))), Softmax(np.array([[1.0, 0.5, 0.0]]))
    rng = np.random.default_rng(0)
    users = np.zeros(4000, dtype=np.int64)
    slates = old.draw(users, 2, rng)
    first, second = slates.T
    stays = people.patience * (1 - likes[0] * (1 - people.content))
    after = np.array(
        [[new.chances(users[:1], np.array([[a, b]]))[0, 1] if a != b else 0 for b in range(3)] for a in range(3)]
    )
    then = stays * (after @ likes[0])  # of the second place, by what stands first
    shown = np.stack([likes[0][first] + then[first], stays[first] * likes[0][second]], axis=1)
    wanted = np.stack([np.full(4000, new.firsts(users[:1])[0] @ (likes[0] + then)), then[first]], axis=1)
    log = Logged(
        people.click(users, slates, rng),
        old.chances(users, slates),
        new.chances(users, slates),
        shown=shown,
        wanted=wanted,
    )
    true = float(new.firsts(users[:1])[0] @ (likes[0] + then))
    found, plain = value_of(log, "cascade-dr"), value_of(log, "rips")
    assert found.ci[0] <= true <= found.ci[1]
    assert found.se < plain.se


def test_iips_needs_the_chances_of_places() -> None:
    rng = np.random.default_rng(0)
    users = rng.integers(0, 40, 3000)
    slates = OLD.draw(users, 1, rng)
    chances = [policy.chances(users, slates) for policy in (OLD, NEW)]
    log = Logged(PEOPLE.click(users, slates, rng), *chances, single=np.stack(chances, axis=2))
    assert value_of(log, "iips").value == pytest.approx(value_of(log, "ips").value)
    with pytest.raises(SpecError, match="iips needs the chances"):
        value_of(Logged(log.reward, log.logging, log.target), "iips")
    with pytest.raises(SpecError, match="dr needs a model's expectations"):
        value_of(Logged(log.reward, log.logging, log.target), "dr")


def test_what_the_log_never_tried_is_refused() -> None:
    """A log that never shows half of the items, and a policy that loves one item nobody was shown."""
    hidden = OLD.scores.copy()
    hidden[:, :6] = -60
    found = value_of(logged(0, old=Softmax(hidden)), "ips")
    assert np.isnan(found.value)
    assert "instead of 1" in found.refused
    loved = Softmax(np.where(np.arange(12) == 3, 14.0, 0.0) + np.zeros((40, 1)))
    rng = np.random.default_rng(0)
    users = rng.integers(0, 40, 200)
    rare = Softmax(np.where(np.arange(12) == 3, -3.0, 0.0) + np.zeros((40, 1)))
    slates = rare.draw(users, 1, rng)
    log = Logged(PEOPLE.click(users, slates, rng), rare.chances(users, slates), loved.chances(users, slates))
    assert "are worth only" in value_of(log, "snips").refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logging": np.array([[0.5], [0.0]])}, "session 1: logging propensities must lie"),
        ({"logging": np.array([[np.nan], [0.5]])}, "session 0: logging is missing"),
        ({"reward": np.array([[1.0], [np.nan]])}, "session 1: reward is missing"),
        ({"target": np.array([[0.5], [1.5]])}, "target propensities"),
    ],
)
def test_logs_without_sound_propensities_are_refused(change: dict[str, Any], message: str) -> None:
    good = {"reward": np.ones((2, 1)), "logging": np.full((2, 1), 0.5), "target": np.full((2, 1), 0.5)}
    with pytest.raises(DataError, match=message):
        Logged(**{**good, **change})


def test_clipping_is_counted() -> None:
    found = value_of(logged(0), "ips", clip=1.5)
    assert 0 < found.clipped < 1
    assert found.value < value_of(logged(0), "ips").value
    assert compare(logged(0), ["ips", "dr"]).height == 2


# Interleaving.

ONE, OTHER = np.arange(10), np.array([1, 0, 3, 2, 9, 8, 7, 6, 5, 4])


@pytest.mark.parametrize("mix", [team_draft, probabilistic])
def test_who_clicks_at_random_prefers_nobody(mix: Any) -> None:
    rng = np.random.default_rng(0)
    scores = np.stack([mix([ONE, OTHER], 5, rng).score((rng.random(5) < 0.3).astype(float)) for _ in range(3000)])
    assert preference(scores).p > 0.001


def test_optimized_lists_are_fair_to_who_looks_at_any_number_of_places() -> None:
    rng = np.random.default_rng(0)
    shown = [optimized(ONE, OTHER, 4, rng) for _ in range(4000)]
    for places in range(1, 5):
        clicks = (np.arange(4) < places).astype(float)
        assert preference(np.stack([s.score(clicks) for s in shown])).p > 0.001
    assert all(len(set(s.items.tolist())) == 4 for s in shown)


def test_the_better_ranker_wins_in_far_fewer_sessions_than_an_a_b_test() -> None:
    people = People.made(users=200, items=30, seed=3)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=people.likes.shape)
    good, poor = (np.argsort(-(np.log(people.likes) + level * noise), axis=1) for level in (0.5, 0.8))
    users = rng.integers(0, 200, 4000)
    shown: list[Shown] = [team_draft([poor[u], good[u]], 10, rng) for u in users]
    clicks = people.click(users, np.stack([s.items for s in shown]), rng)
    scores = np.stack([s.score(c) for s, c in zip(shown, clicks, strict=True)])
    found = preference(scores)
    assert found.ci[0] > 0
    assert found.wins > found.losses
    sides = [people.click(users, ranking[users][:, :10], rng).sum(axis=1) for ranking in (poor, good)]
    apart = sides[1].mean() - sides[0].mean()
    deviation = np.sqrt((sides[0].var() + sides[1].var()) * 2)  # of one session's share in a difference of halves
    a_b = ((1.96 + 0.84) * deviation / apart) ** 2
    assert sessions_needed(scores[:, 1] - scores[:, 0]) < a_b / 10


def test_rankings_that_are_too_short_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(SpecError, match="fewer than 5 items"):
        team_draft([np.arange(3), np.arange(3)], 5, rng)
    with pytest.raises(SpecError, match="fewer than 5 items"):
        optimized(np.arange(3), np.arange(3), 5, rng)
    with pytest.raises(SpecError, match="the same items"):
        probabilistic([np.arange(9), np.arange(1, 10)], 5, rng)
