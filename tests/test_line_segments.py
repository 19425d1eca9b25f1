"""Segments through the whole line: from a folder with a table of users to the endpoint, the batch and the terminal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from folders import folder
from starlette.testclient import TestClient
from typer.testing import CliRunner

from recsys import bundle as bundles
from recsys.batch import run_batch
from recsys.bundle import Bundle
from recsys.candidates import PopularConfig
from recsys.cli import app
from recsys.errors import SpecError
from recsys.serve.app import create_app
from recsys.settings import Settings

# Users 11 to 14 of segment 1 meet item 1, then one more each; users 21 to 26 of segment 2 item 2, then one more each.
GROUPS = {"1": [11, 12, 13, 14], "2": [21, 22, 23, 24, 25, 26]}
MORE = [0, 0, 3, 4, 3, 3]
SPEC = """
[generator]
kind = "popular"
by_segment = true
prior = 1.0
[lm]
kind = "none"
"""


def ran(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("segments")
    users = [(user, segment, place) for segment, some in GROUPS.items() for place, user in enumerate(some)]
    log = [f"{user},{segment},100\n{user},{MORE[place]},200\n" for user, segment, place in users]
    (path / "data").mkdir()
    data = folder(
        path / "data",
        "user_id,item_id,timestamp\n" + "".join(log),
        "item_id,title\n" + "".join(f"{item},Item {item}\n" for item in range(5)),
        '[columns]\nsegment = "band"\n',
    )
    (data / "users.csv").write_text("user_id,band\n" + "".join(f"{user},{segment}\n" for user, segment, _ in users))
    (path / "spec.toml").write_text(SPEC)
    assert ran("fit", data, "--spec", path / "spec.toml", "--out", path / "bundle").exit_code == 0
    return bundles.load(path / "bundle", Settings(cache_dir=path / "cache", offline=True))


def test_a_visitor_without_a_past_gets_what_is_popular_in_their_segment(bundle: Bundle) -> None:
    with TestClient(create_app(bundle)) as client:

        def shown(**body: Any) -> list[int]:
            answer = client.post("/v1/rank", json={"k": 1, **body})
            assert answer.status_code == 200, answer.text
            return [item["item_id"] for item in answer.json()["items"]]

        assert [shown(history=[], segment=segment) for segment in ("1", 1, " 1 ")] == [[1]] * 3
        assert shown(history=[], segment="2") == [2]
        others: list[dict[str, Any]] = [{}, {"segment": None}, {"segment": "unheard of"}, {"segment": ""}]
        assert [shown(history=[], **more) for more in others] == [[2]] * 4
        assert shown(user_id=13) == [0]  # of segment 1, where item 1 has been met
        assert shown(user_id=21) == [3]  # of segment 2


def test_the_batch_and_the_terminal_know_the_users_segments(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.queries([21, 13]).frame["segment"].to_list() == ["2", "1"]
    assert bundle.queries().frame["segment"].to_list() == ["1"] * 4 + ["2"] * 6
    run_batch(bundle, [13, 21], k=1, out=tmp_path / "out", progress=False)
    assert pl.read_parquet(tmp_path / "out" / "part-*.parquet")["item_id"].to_list() == [0, 3]
    assert "Item 0" in ran("recommend", "--bundle", bundle.path, "--user", 13, "--k", 1).output


def test_a_reason_names_the_segment_whose_counts_were_used(bundle: Bundle) -> None:
    def why(**body: Any) -> str:
        with TestClient(create_app(bundle)) as client:
            return str(client.post("/v1/rank", json={"k": 1, **body}).json()["items"][0]["reason"])

    assert why(history=[], segment="1") == "Popular with people in your group (1)"
    assert why(history=[], segment=2) == "Popular with people in your group (2)"
    assert why(history=[], segment="unheard of") == why(history=[]) == "Popular with people here"
    line = bundle.recommender
    plain = PopularConfig().fit(bundle.log, bundle.catalog, seed=0)
    found = replace(line, generator=plain).recommend(bundle.adhoc([], segment="1"), 5)
    assert not found.frame["reason"].str.contains("group").any()  # its counts are everybody's


def test_recommend_says_that_a_segment_is_not_known(bundle: Bundle, tmp_path: Path) -> None:
    def said(path: Path, segment: str) -> str:
        done = ran("recommend", "--bundle", path, "--segment", segment, "--k", 1)
        assert done.exit_code == 0, done.output
        return str(done.stderr)

    assert said(bundle.path, " 1 ") == ""
    assert said(bundle.path, "3") == (
        "note: segment '3' is not known to this bundle, and everybody's figures were used; known are: 1, 2\n"
    )
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC.replace("by_segment = true\n", ""))
    assert ran("fit", bundle.path.parent / "data", "--spec", spec, "--out", tmp_path / "plain").exit_code == 0
    assert said(tmp_path / "plain", "1") == (
        "note: this bundle has no popularity by segment (by_segment is not in its recipe, or was fitted a weight of "
        "zero): everybody's figures were used\n"
    )


def test_an_evaluation_asks_by_segment(bundle: Bundle, tmp_path: Path) -> None:
    from recsys.data.ingest import read_dataset
    from recsys.evaluate import evaluate
    from recsys.spec import load_spec

    root = bundle.path.parent
    settings = Settings(cache_dir=tmp_path / "cache", offline=True)
    found = evaluate(read_dataset(root / "data"), load_spec(root / "spec.toml"), settings)
    assert found.questions.queries.frame["segment"].to_list() == ["1"] * 4 + ["2"] * 6
    assert {"popular", "candidates"} <= set(found.metrics["stages"])


def test_a_recipe_by_segment_for_data_without_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    data = folder(tmp_path, "user_id,item_id\n1,1\n1,2\n2,1\n2,2\n")
    refused = ran("fit", data, "--spec", bundle.path.parent / "spec.toml", "--out", tmp_path / "bundle")
    assert isinstance(refused.exception, SpecError)
    assert "by_segment = true needs the column 'segment'" in str(refused.exception)
    assert not (tmp_path / "bundle").exists()
