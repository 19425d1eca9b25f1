"""The parts of the report, each by itself: colours, plots, words."""

import io
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from recsys.report import plots, stage_table, words


def colours(css: str) -> Iterator[dict[str, str]]:
    light = dict(re.findall(r"--([\w-]+): (#\w{6})", css[: css.index("@media")]))
    dark = dict(re.findall(r"--([\w-]+): (#\w{6})", css[css.index("@media") :]))
    assert set(light) == set(dark)
    yield from (light, dark)


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted([luminance(a), luminance(b)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_both_colour_schemes_can_be_read() -> None:
    css = (Path(plots.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    for scheme in colours(css):
        for ground in ("page", "card"):
            for name in ("ink", "soft", "link"):
                assert contrast(scheme[name], scheme[ground]) >= 4.5, (name, ground)
            for name in ("accent", "series-0", "series-1", "series-2", "better", "worse", "none"):
                assert contrast(scheme[name], scheme[ground]) >= 3, (name, ground)
        assert contrast(scheme["ink"], scheme["mark"]) >= 4.5
        assert contrast(scheme["soft"], scheme["mark"]) >= 4.5


def test_the_recall_curve_tells_the_shares_that_were_measured() -> None:
    frame = pl.DataFrame({"query_id": [1, 2, 3, 4], "candidates": [1.0, 10.5, 60.0, None]})
    plot = plots.recall_curve(frame, ["candidates"])
    assert plot is not None
    assert plot.alt == "Candidates 25% of users at 10 and 75% at 100"


def test_movements_fall_into_their_classes() -> None:
    moved = [0, 1, 3, 4, 10, 11, 20, 21, 50, 51, 300, -1, -3, -4, -50, -51, 0.5, -0.5, 3.5]
    counts = dict(zip(plots._move_names(), plots._move_counts(np.array(moved)), strict=True))
    assert counts == {
        **{"down 51 or more": 1, "down 21–50": 1, "down 11–20": 0, "down 4–10": 1, "down 1–3": 3, "unchanged": 1},
        **{"up 1–3": 3, "up 4–10": 3, "up 11–20": 2, "up 21–50": 2, "up 51 or more": 2},
    }


def test_moving_to_a_smaller_rank_is_moving_up() -> None:
    frame = pl.DataFrame({"candidates": [9.0, 5.0, 4.0, None], "reranked": [2.0, 5.0, 5.0, None]})
    plot = plots.rank_changes(frame)
    assert plot is not None
    assert "the 3 of 4 users" in plot.caption
    assert "moved up for 1, down for 1, unchanged for 1" in plot.caption


def test_activity_groups_hold_everybody_and_never_part_equals() -> None:
    events = [2] * 50 + [3] * 5 + list(range(4, 49))
    known = pl.DataFrame({"query_id": range(100), "events": events})
    groups = list(plots._buckets(known))
    assert sum(len(g) for g in groups) == 100
    assert 2 <= len(groups) <= 4
    assert all(a["events"].max() < b["events"].min() for a, b in pairwise(groups))
    assert len(list(plots._buckets(known.with_columns(events=7)))) == 1


def test_a_steps_name_is_text_and_no_formula() -> None:
    plot = plots.seconds({"cost of $x^2$ & <b>": 2.0, "total": 2.0})
    assert plot is not None
    assert "cost of $x^2$ &amp; &lt;b&gt;" in plot.svg.split("</desc>")[1]
    assert plot.alt == "cost of $x^2$ & <b>: 2.0 s"


def test_a_claim_of_evidence_is_put_in_words() -> None:
    assert words.claim("likes|genres|Comedy|lift=1.3|n=26") == "likes · genres · Comedy · lift 1.3 · n 26"
    assert words.claim("likes a=b, as written") == "likes a=b, as written"


def test_numbers_in_words() -> None:
    assert words.signed(-0.00001) == "0.0000"
    assert words.signed(-0.0123) == f"{words.MINUS}0.0123"
    assert words.spread([-0.01, 0.02], sign=True) == f"{words.MINUS}0.0100 to +0.0200"
    assert words.percent(None) == "–"
    assert words.percent(0.1234) == "+12.3%"
    assert [words.p_value(p) for p in (1.0, 0.0456, 0.0002)] == ["1.000", "0.046", "< 0.001"]
    assert [words.duration(s) for s in (0.04, 59.94, 59.99, 3599.6, 7260)] == [
        *("0.0 s", "59.9 s", "1 min 0 s", "1 h 0 min", "2 h 1 min"),
    ]
    assert [words.rank(r) for r in (None, 3.0, 6.5)] == ["not in the list", "3", "6.5"]


def test_what_a_fit_found_is_said_of_what_was_fitted() -> None:
    weights = {"score": 1.0, "lm": 0.75}
    some = {"lists": 1250, "l2": 0.1, "queries": 4000, "weights": weights}
    some |= {"candidates": 0.101, "reranked": 0.123, "without_lm": 0.111}
    assert words.learned(some, "sequence") == (
        "NDCG@10 0.1010 as the candidates came, 0.1230 reranked, 0.1110 with the same inputs but without the sequence "
        "network, whose weight is 0.750 beside the candidate score's 1.000 (1,250 lists of tune, cross-validated)."
    )
    assert "without the language model, whose" in words.learned(some, "packed")
    assert "without the server's reranker, whose" in words.learned(some, "endpoint")
    kept = words.learned({**some, "l2": None}, "sequence")
    assert kept == (
        "The order of the candidates is kept: no weights beat it beyond noise, and the sequence network counts for "
        "nothing (1,250 lists of tune, cross-validated)."
    )
    assert words.learned({**some, "lists": 0}, "sequence") == (
        "The order of the candidates is kept: the hidden item was in none of 4,000 lists to learn from."
    )
    assert words.input_name("lm", "sequence") == "opinion of the sequence network"
    assert words.input_name("score", "sequence") == "score"


def test_the_terminal_table_fits_eighty_columns_where_all_is_found() -> None:
    from rich.console import Console

    stage = dict.fromkeys(words.METRICS, 1.0) | {"popularity@10": 12_345.6789}
    stage |= {"ci95": {name: [0.9996, 1.0] for name in words.METRICS if name.startswith(("ndcg", "recall", "mrr"))}}
    lift = {"delta": 0.0, "ci95": [0.0, 0.0], "relative": 0.0, "p": 1.0}
    found = {
        "stages": dict.fromkeys(words.STAGES, stage),
        "lift": {"ndcg@10": lift},
        "run": {"spec": {"reranker": {"kind": "sequence"}}},
    }
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(stage_table(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert text.count("1.0000 [1.00, 1.00]") == 3 * 5
    assert "Popularity@10" in text
    assert text.count("12,345.6789") == 3
