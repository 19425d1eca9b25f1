"""Who is forgotten is in no byte of any store, and everybody else is served as before."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from checks import HashLM
from recsys import bundle, erasure
from recsys.candidates import AlsConfig, FusionConfig, PopularConfig, TransitionsConfig
from recsys.data import files
from recsys.erasure import Erased, _InBundle, erased, forget
from recsys.errors import BundleError, StorageError
from recsys.lm import LMConfig, replay
from recsys.lm.replay import ReplayLM
from recsys.profiles import ProfilesConfig, summarize
from recsys.profiles.edits import NO_DISLIKE, Edit, Edits
from recsys.profiles.store import Store
from recsys.profiles.template import sentences
from recsys.profiles.versions import ProfileStore, Version, open_store
from recsys.rerank.prompt import About, Prompt
from recsys.rerank.soft import SoftTokens
from recsys.settings import Settings
from recsys.spec import Spec, fit
from recsys.tables import InteractionLog, Queries, query_histories

SPEC = Spec(
    generator=FusionConfig(sources=(TransitionsConfig(), PopularConfig(), AlsConfig(factors=8))),
    profiles=ProfilesConfig(personas=4),
    lm=LMConfig(kind="none"),
)
WORDS = "more brimstone, please"


@dataclasses.dataclass
class Place:
    """A bundle, a store of profiles and recorded answers that all know the same people."""

    folder: Path
    users: list[Any]

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def replay(self) -> Path:
        return self.folder / "replay"

    @property
    def store(self) -> ProfileStore:
        return open_store(f"sqlite:///{self.folder}/state/recsys.db")

    @property
    def parquet(self) -> ProfileStore:
        return open_store(str(self.folder / "profiles"))

    def texts(self, user: Any) -> list[str]:
        return Store.load(self.bundle / "profiles" / "texts.parquet").frame.filter(user_id=str(user))["text"].to_list()

    def forget(self, user: Any) -> Erased:
        first = forget([user], bundle=self.bundle, store=self.store, replay=self.replay, at=1800000000)
        return dataclasses.replace(first, rows=first.rows + forget([user], store=self.parquet).rows)


@pytest.fixture(scope="session")
def line(tiny: Any, weights_settings: Settings) -> Any:
    """Fitted on the tiny dataset, whose users have names that stand nowhere else."""
    named = pl.format("member-{}-xq", "user_id")
    dataset = dataclasses.replace(tiny, log=InteractionLog.of(tiny.log.frame.with_columns(user_id=named)))
    return dataset, fit(dataset, SPEC, weights_settings, seed=0).recommender


@pytest.fixture
def place(line: Any, tmp_path: Path) -> Place:
    dataset, recommender = line
    users = dataset.log.frame.group_by("user_id").len().sort("len", "user_id").tail(6)["user_id"].to_list()
    own = dataset.log.frame.filter(pl.col("user_id").is_in(users))
    queries = query_histories(InteractionLog(own))
    lm = ReplayLM(HashLM(), tmp_path / "replay")
    profiles, _ = summarize(recommender.profiles, queries, lm, len(users))
    summarize(recommender.profiles, queries, lm, len(users), prompt="write")
    bundle.write(tmp_path / "bundle", dataclasses.replace(recommender, profiles=profiles), dataset, spec=SPEC)
    found = Place(tmp_path, users)
    titles = dict(dataset.catalog.frame.select("item_id", "title").iter_rows())
    prompt = Prompt.read("listwise-v1", ("context", "item"))
    for user, history in queries.frame.select("user_id", "history").iter_rows():
        (text,) = found.texts(user)
        recent = [titles[item] for item in history[-3:]]
        said = f"{WORDS} ({user})"
        lm.generate([prompt.render(About(profile=text)), prompt.render(About(recent=recent)), f'They said: "{said}"'])
        for store in (found.store, found.parquet):
            store.put([Version(user, 5, text, ("likes|x",)), Version(user, 9, f"{text} And zeppelins.")])
            store.edit(user, Edit(7, "say", text=said))
    return found


def every_word(folder: Path) -> str:
    """The raw bytes of all files as text, and what packed ones hold once they are unpacked."""
    parts = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts.append(path.read_bytes().decode("utf-8", "replace"))
        if path.suffix == ".parquet":
            parts.append(json.dumps(pl.read_parquet(path).to_dict(as_series=False), ensure_ascii=False, default=str))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                parts += [str(array.tolist()) for array in arrays.values()]
    return "\n".join(parts).replace('\\"', '"')


def traces(place: Place, user: Any) -> list[str]:
    """What is theirs alone, wherever it may stand: the id, the own words, texts, sentences that name their titles."""
    (text,) = place.texts(user)
    telling = [sentence for sentence in text.split(". ") if '"' in sentence]
    assert telling
    return [user, f"{WORDS} ({user})", text, *telling, *(sentence.replace('"', "'") for sentence in telling)]


def test_who_is_forgotten_is_in_no_byte(place: Place) -> None:
    user, other = place.users[0], place.users[1]
    mine, theirs = traces(place, user), traces(place, other)
    before = every_word(place.folder)
    assert [trace for trace in mine if trace not in before] == [], "what is looked for is there before"
    found = place.forget(user)
    assert found.texts == 1
    assert found.rows == 6
    assert found.events > 0
    assert found.answers >= 4
    after = every_word(place.folder)
    assert [trace for trace in mine if trace in after] == []
    gone = [trace for trace in theirs if trace not in after]
    assert [trace for trace in gone if "'" not in trace] == [], "the others are still there, save for shared answers"
    assert f'"{WORDS} ({other})"' in every_word(place.replay)
    assert place.forget(user) == Erased()


def test_the_bundle_loads_and_serves_the_others_as_before(place: Place, weights_settings: Settings) -> None:
    user = place.users[0]
    before = bundle.load(place.bundle, weights_settings)
    questions = before.queries()
    place.forget(user)
    after = bundle.load(place.bundle, weights_settings)
    others = Queries(questions.frame.filter(pl.col("user_id") != user).head(20))
    assert after.recommender.recommend(others, 5).frame.equals(before.recommender.recommend(others, 5).frame)
    assert user not in set(after.log.frame["user_id"])
    assert after.log.frame.equals(before.log.frame.filter(pl.col("user_id") != user))
    assert after.manifest["data"]["users"] == before.manifest["data"]["users"] - 1
    assert after.manifest["data"]["events"] == len(after.log)
    assert after.name != before.name, "another hash, so that answers of either can be told apart"
    assert place.texts(place.users[1])


def test_the_recorded_titles_of_a_history_go_and_those_of_others_stay(place: Place, line: Any) -> None:
    dataset, _ = line
    titles = dict(dataset.catalog.frame.select("item_id", "title").iter_rows())
    lists = {}
    for user in place.users[:2]:
        history = dataset.log.frame.filter(user_id=user)["item_id"].to_list()
        lists[user] = ", ".join(f'"{titles[item]}"' for item in history[-3:])
    assert all(text in every_word(place.replay) for text in lists.values())
    place.forget(place.users[0])
    assert [text in every_word(place.replay) for text in lists.values()] == [False, True]


def test_a_profile_that_no_model_wrote_is_found_in_prompts_too(place: Place, line: Any) -> None:
    """As it stands now, and (by the sentences that name titles) as it stood at any earlier event."""
    dataset, recommender = line
    user = dataset.log.frame.filter(~pl.col("user_id").is_in(place.users))["user_id"][0]
    events = dataset.log.frame.filter(user_id=user)
    lm, prompt = ReplayLM(HashLM(), place.replay), Prompt.read("listwise-v1", ("context", "item"))
    told = []
    for n in (len(events), len(events) - 1, len(events) // 2):
        queries = query_histories(InteractionLog(events.head(n)))
        told.append(recommender.profiles.as_of(queries).frame["text"][0].replace('"', "'"))
    told.append(told[0].split(". ")[0])  # cut short, it names a taste and no title
    assert "'" not in told[-1]
    lm.generate([prompt.render(About(profile=text)) for text in told])
    assert all(text[:300] in every_word(place.replay) for text in told)
    forget([user], bundle=place.bundle, replay=place.replay)
    assert [text for text in told if text[:300] in every_word(place.replay)] == []


def test_a_history_in_soft_tokens_is_found_in_prompts_too(place: Place, line: Any) -> None:
    dataset, _ = line
    found = SoftTokens.of(dataset.log)
    folder = place.bundle / "reranker" / "judge" / "adapter"
    folder.mkdir(parents=True)
    weight = np.zeros((8, found.vectors.shape[1]), dtype=np.float32)
    dataclasses.replace(found, weight=weight, bias=weight[:, 0].copy()).save(folder)
    histories = dict(query_histories(dataset.log).frame.select("user_id", "history").iter_rows())
    own = found.said(histories[place.users[0]])
    other = 3 * own[-1]  # somebody who comes back to the last item
    ReplayLM(HashLM(), place.replay).score([f"in this order: {said}" for said in (own, other)], [["a"]] * 2)
    words = _InBundle.of(place.bundle, [place.users[0]]).words()
    assert {own[:2], own[-2:]} <= words
    replay.forget(place.replay, sorted(words))
    assert [said in every_word(place.replay) for said in (own, other)] == [False, True]


def test_a_profile_is_found_as_it_was_after_each_edit(place: Place, line: Any) -> None:
    """No version of these was kept, and none of them is what the profile says now."""
    dataset, recommender = line
    user = dataset.log.frame.filter(~pl.col("user_id").is_in(place.users))["user_id"][0]
    queries = query_histories(InteractionLog(dataset.log.frame.filter(user_id=user)))
    tastes = recommender.profiles.evidence(queries)[0].tastes
    pins = [Edit(0, "pin", t.attribute, t.value) for t in (*recommender.profiles.evidence(queries)[0].common, *tastes)]
    steps = [*pins[:2], Edit(0, "forget", tastes[0].attribute, tastes[0].value)]
    steps.append(Edit(0, "withdraw", tastes[0].attribute, tastes[0].value))
    lm, prompt = ReplayLM(HashLM(), place.replay), Prompt.read("listwise-v1", ("context", "item"))
    told = []
    for n in range(1, len(steps) + 1):
        edited = recommender.profiles.with_edits(Edits.of(user, *steps[:n]))
        told.append(edited.as_of(queries).frame["text"][0].replace('"', "'")[:100].rstrip())
        place.store.edit(user, steps[n - 1])
    assert len(set(told)) == len(steps)
    lm.generate([prompt.render(About(profile=text)) for text in told])
    assert all(text in every_word(place.replay) for text in told)
    forget([user], bundle=place.bundle, store=place.store, replay=place.replay)
    assert [text for text in told if text in every_word(place.replay)] == []


def test_the_mark_of_a_dislike_that_is_forgotten_is_nobodys_words(place: Place) -> None:
    user = place.users[0]
    place.store.edit(user, Edit(1, "forget", "genres", "Western", NO_DISLIKE))
    ReplayLM(HashLM(), place.replay).generate(["Say what this person dislikes."])
    place.forget(user)
    assert "Say what this person dislikes." in every_word(place.replay)


def test_a_profile_in_another_wording_is_found_too(tiny: Any, settings: Settings, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"profiles": ProfilesConfig(wording="phrases-de")})
    recommender = fit(tiny, spec, settings, seed=0).recommender
    bundle.write(tmp_path / "bundle", recommender, tiny, spec=spec)
    queries = query_histories(InteractionLog(tiny.log.frame.filter(user_id=17)))
    first = sentences(recommender.profiles.evidence(queries)[0], recommender.profiles.phrases)[0]
    lm = ReplayLM(HashLM(), tmp_path / "replay")
    lm.generate([f"Say it otherwise: {phrasing}" for phrasing in first.phrasings])
    assert forget([17], bundle=tmp_path / "bundle", replay=tmp_path / "replay").answers == len(first.phrasings) > 1


def test_a_number_may_be_given_as_text(tiny: Any, weights_settings: Settings, tmp_path: Path) -> None:
    recommender = fit(tiny, SPEC, weights_settings, seed=0).recommender
    bundle.write(tmp_path / "bundle", recommender, tiny, spec=SPEC)
    store = open_store(str(tmp_path / "profiles"))
    store.put([Version(17, 1, "text")])
    found = forget(["17", "00018"], bundle=tmp_path / "bundle", store=store)
    assert found.events == tiny.log.frame.filter(user_id=17).height
    assert found.rows == 1
    assert erased(tiny.log, store).frame["user_id"].n_unique() == tiny.log.frame["user_id"].n_unique() - 1


def test_the_next_import_drops_who_was_erased(place: Place, line: Any) -> None:
    dataset, _ = line
    user = place.users[0]
    assert erased(dataset.log, place.store).frame.equals(dataset.log.frame)
    place.forget(user)
    for store in (place.store, place.parquet):
        kept = erased(dataset.log, store).frame
        assert kept.equals(dataset.log.frame.filter(pl.col("user_id") != user))


def test_unknown_users_and_missing_stores_change_nothing(place: Place) -> None:
    before = (place.bundle / bundle.MANIFEST).read_bytes()
    assert forget(["nobody"], bundle=place.bundle, replay=place.replay) == Erased()
    assert forget([], bundle=place.bundle, store=place.store, replay=place.replay) == Erased()
    assert forget([place.users[0]]) == Erased()
    assert forget([place.users[0]], replay=place.folder / "nowhere") == Erased()
    assert (place.bundle / bundle.MANIFEST).read_bytes() == before
    with pytest.raises(BundleError, match="no bundle here"):
        forget([place.users[0]], bundle=place.folder / "nowhere", store=place.store)
    assert place.store.versions(place.users[0]), "nothing was removed where the bundle is not sound"


def test_texts_of_nobody_in_particular_go_with_the_evidence(place: Place) -> None:
    user = place.users[0]
    with bundle.rewriting(place.bundle) as folder:
        path = folder / "profiles" / "texts.parquet"
        stored = Store.load(path).frame
        Store(stored.with_columns(user_id=pl.lit(None, dtype=pl.String))).save(path)
    assert forget([user], bundle=place.bundle).texts == 1
    assert len(Store.load(place.bundle / "profiles" / "texts.parquet")) == len(place.users) - 1


@pytest.mark.parametrize("step", ["copytree", "save", "_hashes", "_sealed", "_swap", "rename"])
def test_an_interrupted_erasure_leaves_a_whole_bundle(
    place: Place, monkeypatch: pytest.MonkeyPatch, weights_settings: Settings, step: str
) -> None:
    owner: Any = {"copytree": bundle.shutil, "save": Store, "_swap": files, "rename": files.os}.get(step, bundle)
    real, calls = getattr(owner, step), []

    def fail(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) < {"_hashes": 3, "_sealed": 3, "rename": 2}.get(step, 1):
            return real(*arguments, **options)
        if step == "rename" and len(calls) > 2:  # the way back
            return real(*arguments, **options)
        raise OSError(28, "No space left on device")

    user = place.users[0]
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        with pytest.raises((StorageError, BundleError)):
            forget([user], bundle=place.bundle, store=place.store, replay=place.replay)
    assert user in set(bundle.load(place.bundle, weights_settings).log.frame["user_id"])
    assert [path.name for path in place.folder.iterdir() if path.name.startswith(".")] == []
    assert place.store.versions(user), "the words to find answers by are removed last"
    place.forget(user)
    assert user not in every_word(place.folder)


def test_a_killed_erasure_is_settled_by_the_next(place: Place, weights_settings: Settings) -> None:
    """Between the two renames: the old bundle stands aside, the new one is not there yet."""
    user = place.users[0]
    place.bundle.rename(place.folder / ".0123abcd.old.bundle")
    for name in (".89abcdef.bundle", ".0123abcd.other", ".mine.bundle"):
        (place.folder / name).mkdir()
    place.forget(user)
    assert user not in every_word(place.folder)
    assert user not in set(bundle.load(place.bundle, weights_settings).log.frame["user_id"])
    assert {path.name for path in place.folder.iterdir()} >= {".0123abcd.other", ".mine.bundle"}
    assert not (place.folder / ".89abcdef.bundle").exists()


def test_evidence_of_another_version_is_no_obstacle() -> None:
    assert [erasure._evidence(text) for text in ("", "{}", "[]", '{"tastes": 1}', "no json")] == [None] * 5
