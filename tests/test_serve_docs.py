"""What the service says of itself: openapi.json and the page /docs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import ITEMS, FakeRecommender, fake_bundle, real_bundle
from starlette.testclient import TestClient

from recsys.data.ingest import Dataset
from recsys.lm.replay import ScriptedLM
from recsys.serve.app import create_app, docs_page


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(fake_bundle(tmp_path / "bundle"))) as client:
        yield client


def test_openapi_describes_the_request_with_examples_that_work(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert set(schemas["RankRequest"]["properties"]) == {"user_id", "history", "segment", "request", "k"}
    assert set(schemas["RankedItem"]["properties"]) == {"item_id", "title", "rank", "score", "reason", "served_by"}
    assert _examples(client) == [
        {"user_id": 2, "k": 10},
        {"history": [100, 101, 102], "k": 5},
        {"user_id": 2, "k": 10, "request": "something light, no horror"},
    ]
    for example in _examples(client):
        assert client.post("/v1/rank", json=example).status_code == 200


def test_the_examples_fit_a_small_catalog_and_real_ids(tmp_path: Path, tiny: Dataset) -> None:
    small = fake_bundle(tmp_path / "bundle", FakeRecommender(items=ITEMS[:2]))
    for bundle in (small, real_bundle(tmp_path / "real", tiny, ScriptedLM())):
        with TestClient(create_app(bundle)) as client:
            for example in _examples(client):
                assert client.post("/v1/rank", json=example).status_code == 200
            shown = re.search(r"<textarea[^>]*>(.*?)</textarea>", client.get("/docs").text)
            assert shown is not None
            assert json.loads(shown[1]) == _examples(client)[0]


def _examples(client: TestClient) -> Any:
    return client.get("/openapi.json").json()["paths"]["/v1/rank"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]["examples"]


def test_an_id_breaks_neither_the_docs_page_nor_its_shell_line() -> None:
    page = docs_page({"user_id": "</textarea><script>'&"})
    assert '{"user_id": "&lt;/textarea&gt;&lt;script&gt;\\u0027&amp;"}' in page
    assert "EXAMPLE" not in page


def test_the_docs_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/rank" in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "//" not in page.text.replace("<!--", "").split("<script>")[0].replace("</", "")
