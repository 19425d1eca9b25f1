"""The report: it says what was found and no more, runs nothing, asks for nothing from outside, and all can read it."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys import metrics
from recsys.errors import StorageError
from recsys.report import (
    DictionaryRow,
    HistoryRow,
    ReportData,
    SlateRow,
    SourceRow,
    UserPage,
    Weights,
    render_report,
    stage_table,
    words,
    write_report,
)
from recsys.rerank.fusion import FusionReport

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> & ${7*7} {{ 7*7 }} $\\frac{1}{2}$ -->"
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def per_query(n: int = 120) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    popular, candidates = np.floor(np.exp(rng.uniform(0, [[9], [7]], size=(2, n))))
    reranked = np.where(candidates <= 50, np.maximum(1, candidates + rng.integers(-6, 7, size=n)), candidates)
    ranks = {"popular": popular, "candidates": candidates, "reranked": reranked}
    series = {name: pl.Series(r).set(pl.Series(r > 100), None) for name, r in ranks.items()}
    return pl.DataFrame({"query_id": range(n), "user_id": range(n), "item_id": range(n), **series})


def stage(ranks: pl.Series) -> dict[str, Any]:
    values = {
        **{f"{m.__name__}@10": m(ranks, 10) for m in (metrics.ndcg, metrics.recall, metrics.mrr)},
        **{f"recall@{k}": metrics.recall(ranks, k) for k in (50, 100)},
    }
    means = {name: float(v.mean()) for name, v in values.items()}
    return {**means, "coverage@10": 0.4, "ci95": {name: list(metrics.mean_interval(v)) for name, v in values.items()}}


def body(frame: pl.DataFrame, **lift: Any) -> dict[str, Any]:
    stages = {name: stage(frame[name]) for name in ("popular", "candidates", "reranked")}
    found = metrics.paired(metrics.ndcg(frame["reranked"], 10), metrics.ndcg(frame["candidates"], 10), seed=0).row()
    return {
        "data": {"users": 943, "items": 1349, "k_core": 5, "nested": {"left": "out"}},
        "split": "leave-last",
        "stages": stages,
        "lift": {"ndcg@10": {**found, **lift}},
        "seconds": {"fit": 12.5, "rerank": 75.0, "total": 87.5},
        "peak_rss_mb": 2210.4,
    }


def report(text: str = "plain") -> ReportData:
    """A whole report in which every free text is `text`."""
    frame = per_query()
    found = body(frame)
    found["seconds"] = {text: 12.5, "rerank": 75.0, "total": 87.5}
    found["data"]["name"] = text
    user = UserPage(
        user_id=text,
        history=[HistoryRow(text, 4.0, text), HistoryRow(text, None, "position 7")],
        events=1234,
        profile=text,
        model=text,
        claims=[text],
        slate=[SlateRow(text, 1.5, text, text), SlateRow(text, -0.25, "reranker", text, held_out=True)],
        held_out=text,
        ranks={"popular": None, "candidates": 6.5, "reranked": 2.0},
    )
    return ReportData(
        dataset=text,
        metrics=found,
        per_query=frame,
        activity=pl.DataFrame({"query_id": range(120), "events": [i // 3 + 2 for i in range(120)]}),
        sources=[SourceRow(text, 0.08, 0.5, 0.6, 31.0, metrics.Paired(0.01, 0.1, (0.004, 0.016), 0.002, 120), None)],
        weights=[Weights(text, text, {text: 1.2, "other": -0.3})],
        users=[user, replace(user, user_id=8, model="template")],
        dictionary=[DictionaryRow(text, text, text, text, text)],
        notes=[text],
        licence=text,
        run={text: text},
        spec=text,
        weight_name=text,
    )


@pytest.fixture(scope="module")
def evil() -> str:
    return render_report(report(EVIL))


def test_a_script_in_any_text_is_inert_and_still_readable(evil: str) -> None:
    page = Page(evil)
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"})
    assert [a for _, a in page.elements if any(name.startswith("on") for name in a)] == []
    assert page.text.count("<script>alert('x')</script>") >= 20
    assert "{{ 7*7 }}" in page.text
    assert "$\\frac{1}{2}$" in page.text
    assert page.open == []


def test_nothing_is_asked_for_from_outside(evil: str) -> None:
    page = Page(evil)
    namespaces = set(re.findall(r'xmlns(?::\w+)?="([^"]*)"', evil))
    assert set(re.findall(r"\w+://[^\"'\s<>)]*", evil)) <= namespaces
    for _, attributes in page.elements:
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in evil
    assert set(re.findall(r"url\((.)", evil)) <= {"#"}
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_every_id_is_unique_and_every_reference_has_its_target(evil: str) -> None:
    page = Page(evil)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = [r for _, a in page.elements for r in a.get("aria-labelledby", "").split()]
    linked = [a[n][1:] for _, a in page.elements for n in ("href", "xlink:href") if n in a]
    clipped = re.findall(r"url\(#([^)]+)\)", evil)
    assert named
    assert linked
    assert clipped
    assert set(named) | set(linked) | set(clipped) <= set(ids)


def test_every_plot_has_a_text_and_every_table_its_headers(evil: str) -> None:
    page = Page(evil)
    drawings = page.all("svg")
    assert len(drawings) == 5
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in drawings)
    described = re.findall(r"<desc[^>]*>([^<]+)</desc>", evil)
    assert len(described) == 5
    assert min(len(text) for text in described) > 20
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert all(a.get("scope") in {"row", "col"} for a in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_the_sections_stand_in_the_order_in_which_they_are_read(evil: str) -> None:
    places = [
        evil.index(f'id="{name}"')
        for name in ("verdict", "quality-section", "plots", "sources", "users", "data", "run")
    ]
    assert places == sorted(places)


def test_the_same_data_give_the_same_bytes() -> None:
    assert render_report(report()) == render_report(report())


def test_plots_take_their_colours_from_the_page(evil: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", evil, flags=re.DOTALL))
    assert not re.findall(r"#0102\d\d", evil)
    assert "var(--series-2)" in drawn
    assert set(re.findall(r"var\(--([\w-]+)\)", drawn)) <= set(re.findall(r"--([\w-]+):", evil))


@pytest.mark.parametrize(
    ("bounds", "headline", "direction"),
    [
        ([-0.004, 0.009], "The reranker makes no measurable difference", "none"),
        ([0.0, 0.009], "The reranker makes no measurable difference", "none"),
        ([0.0, 0.0], "The reranker makes no measurable difference", "none"),
        ([0.001, 0.009], "The reranker orders the candidates better than they came", "better"),
        ([-0.009, -0.001], "The reranker orders the candidates worse than they came", "worse"),
    ],
)
def test_the_verdict_follows_the_interval_and_not_the_estimate(
    bounds: list[float], headline: str, direction: str
) -> None:
    found = words.reranker_finding(body(per_query(), ci95=bounds, delta=0.005, relative=0.05, p=0.04))
    assert (found.headline, found.direction) == (headline, direction)
    assert "difference of +0.0050, +5.0%" in found.sentences[0]


def test_the_page_says_no_measurable_difference_where_the_interval_covers_zero() -> None:
    data = report()
    page = Page(render_report(replace(data, metrics=body(data.per_query, ci95=[-0.004, 0.009]))))
    assert "The reranker makes no measurable difference" in page.text
    assert "an effect of up to about 0.009 either way cannot be ruled out" in page.text
    assert [a for _, a in page.elements if a.get("class") == "verdict none"]


def test_a_baseline_of_zero_has_no_relative_difference() -> None:
    found = words.reranker_finding(body(per_query(), relative=None))
    assert "%," not in found.sentences[0]
    assert "None" not in found.sentences[0]


def test_the_candidates_are_judged_against_popularity_by_the_same_rule() -> None:
    frame = per_query(1500)
    assert "rank better than popularity alone" in words.candidates_finding(frame)
    same = frame.with_columns(popular=pl.col("candidates"))
    assert "no measurable difference from popularity alone" in words.candidates_finding(same)


def test_the_fusion_is_said_to_beat_only_what_it_beats() -> None:
    def row(name: str, low: float, high: float) -> SourceRow:
        return SourceRow(name, 0.08, 0.5, 0.6, 31.0, metrics.Paired((low + high) / 2, 0.1, (low, high), 0.5, 120), None)

    data = replace(
        report(), sources=[row("als", 0.01, 0.03), row("popular", 0.02, 0.04), row("transitions", -0.01, 0.01)]
    )
    text = Page(render_report(data)).text
    assert "measurably better than als and popular; it shows no measurable difference from transitions." in text


def test_a_run_without_a_reranker_sources_users_or_activity_still_has_a_report() -> None:
    data = report()
    found = {**data.metrics, "lift": {}, "seconds": {}}
    found["stages"] = {name: data.metrics["stages"][name] for name in ("popular", "candidates")}
    bare = replace(
        data,
        metrics=found,
        per_query=data.per_query.drop("reranked"),
        activity=data.activity.clear(),
        sources=[],
        weights=[],
        users=[],
    )
    page = Page(render_report(bare))
    assert "No reranker was part of this run" in page.text
    assert len(page.all("svg")) == 2
    links = {a["href"] for a in page.all("a")}
    assert links.isdisjoint({"#sources", "#users"})


def test_a_reranker_that_only_hands_on_is_called_none_and_credited_with_nothing() -> None:
    data = report()
    found = {**data.metrics, "run": {"spec": {"reranker": {"kind": "identity"}}}}
    text = Page(render_report(replace(data, metrics=found))).text
    assert "No reranker was part of this run" in text
    assert "Reranked" not in text
    assert "popular not in the list, candidates 6.5." in text


def test_what_a_users_page_shows() -> None:
    text = Page(render_report(report())).text
    assert "popular not in the list, candidates 6.5, reranked 2." in text
    assert "The last 2 of 1,234 events, newest first." in text
    assert "Put together by a template, without a language model" in text
    assert "The evidence it rests on (1)" in text
    assert "hidden item" in text
    assert "position 7" in text
    assert f"{words.MINUS}0.250" in text


def test_a_title_of_ten_thousand_characters_is_cut() -> None:
    page = render_report(report("x" * 10_000 + "\n\ty"))
    text = Page(page).text
    assert "x" * 239 + "…" in text
    assert "x" * 240 not in re.search(r"Recent history.*?Profile", text, flags=re.DOTALL).group()


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out" / "report.html"
    assert write_report(out, report()) == out
    assert out.read_text(encoding="utf-8").endswith("</html>")
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(out / "below" / "report.html", report())
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "report.html"]


def test_the_terminal_table_fits_eighty_columns_with_every_interval() -> None:
    from rich.console import Console

    found = body(per_query())
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(stage_table(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    for name in ("Popular", "Candidates", "Reranked", "NDCG@10", "Coverage@10"):
        assert name in text
    assert text.count("[") == text.count("]") == 3 * 5
    low, high = (f"{b:.3f}"[1:] for b in found["stages"]["reranked"]["ci95"]["ndcg@10"])
    assert f"{found['stages']['reranked']['ndcg@10']:.4f} [{low}, {high}]" in text
    assert words.reranker_finding(found).headline in text


def test_a_fusion_that_had_nothing_to_learn_from_is_reported_too(weights_settings, tmp_path) -> None:
    from recsys.candidates import FusionConfig, PopularConfig, TransitionsConfig
    from recsys.data.ingest import dataset_from_frames
    from recsys.evaluate import evaluate
    from recsys.lm import LMConfig
    from recsys.report.assemble import report_data
    from recsys.spec import Spec

    log = pl.DataFrame({"user_id": [1, 1, 2, 2, 3, 3], "item_id": [0, 1, 1, 2, 2, 0], "timestamp": range(6)})
    items = pl.DataFrame({"item_id": [0, 1, 2], "title": ["One", "Two", "Three"]})
    spec = Spec(generator=FusionConfig(sources=(TransitionsConfig(), PopularConfig())), lm=LMConfig(kind="none"))
    dataset = dataset_from_frames("two events each", log, items)
    data = report_data(evaluate(dataset, spec, weights_settings), dataset)
    write_report(tmp_path / "report.html", data)
    assert "all sources count alike" in (tmp_path / "report.html").read_text()


def fit_of(**changes: Any) -> dict[str, Any]:
    """What the fit of a reranker's weights says, in the shape that the fit gives it."""
    weights = {"score": 1.0, "lm": 0.75}
    found = FusionReport(weights, 0.1, 400, 300, 250, 0.101, 0.123, 0.111, 0.022, (0.01, 0.03), "not for the page")
    return {**replace(found, **changes).as_dict()}


@pytest.mark.parametrize("missing", [(), ("told",), ("request", "told")])
def test_the_weights_of_every_kind_of_query_are_shown(missing: tuple[str, ...], weights_settings: Any) -> None:
    from recsys.data.ingest import dataset_from_frames
    from recsys.evaluate import evaluate
    from recsys.lm import LMConfig
    from recsys.report.assemble import report_data
    from recsys.spec import Spec

    log = pl.DataFrame({"user_id": [1, 1, 2, 2, 3, 3], "item_id": [0, 1, 1, 2, 2, 0], "timestamp": range(6)})
    items = pl.DataFrame({"item_id": [0, 1, 2], "title": ["One", "Two", "Three"]})
    spec = Spec.model_validate({"generator": {"kind": "popular"}, "lm": LMConfig(kind="none")})
    dataset = dataset_from_frames("two events each", log, items)
    found = evaluate(dataset, spec, weights_settings)
    regimes = {
        "request": fit_of(weights={"score": 1.0, "lm": 2.5}, reranked=0.234),
        "told": fit_of(l2=None, weights={"score": 1.0, "lm": 0.0}),
    }
    fit = {**fit_of(), "regimes": {name: own for name, own in regimes.items() if name not in missing}}
    run = {**found.metrics["run"], "spec": {**found.metrics["run"]["spec"], "reranker": {"kind": "sequence"}}}
    data = report_data(replace(found, metrics={**found.metrics, "run": run, "tuning": {"reranker": fit}}), dataset)
    page = Page(render_report(replace(data, spec=""))).text
    shown = {
        "request": ["Reranker, where there is a request in words", "0.2340 reranked", "+2.500"],
        "told": ["Reranker, where there is no history", "no weights beat it beyond noise"],
    }
    for regime, texts in shown.items():
        assert [text in page for text in texts] == [regime not in missing] * len(texts), regime
    served = {(): "", ("told",): "users without history"}.get(
        missing, "queries with a request in words and users without"
    )
    assert ("The same weights serve" in page) == bool(missing)
    assert served in page
    assert page.count("opinion of the sequence network") == 3 - len(missing)
    assert "+0.750" in page
    assert "not for the page" not in page
    for wrong in ("the LM", "prompt", "language model's"):
        assert wrong not in page, wrong
