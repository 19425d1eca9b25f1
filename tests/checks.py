"""What the contract suites check with: assertions on tables, and hand-made fakes of models."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.testing import assert_frame_equal

from recsys.protocols import Score
from recsys.tables import Candidates, Catalog, Profiles, Queries

# Scores are float32 sums: the size of a batch may change their last bits, never the order of the items.
TOLERANCE = 1e-5
# The first bytes of a pickle, by protocol.
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def words(text: str) -> list[str]:
    return "".join(c.lower() if c.isalnum() else " " for c in text).split()


def word_vector(text: str, dim: int = 64) -> list[float]:
    """A hashed bag of words of unit length: equal words, near texts. Stands for a text encoder where none is wanted."""
    vector = [0.0] * dim
    for word in words(text) or [""]:
        digest = hashlib.sha256(word.encode()).digest()
        vector[digest[0] % dim] += 1.0 if digest[1] % 2 else -1.0
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector] if norm else [1.0] + [0.0] * (dim - 1)


def with_word_vectors(catalog: Catalog, dim: int = 64) -> Catalog:
    """The catalog with the column `embedding`, as an encoder would add it."""
    vectors = [word_vector(text, dim) for text in catalog.frame["text"]]
    return Catalog(catalog.frame.with_columns(embedding=pl.Series(vectors, dtype=pl.Array(pl.Float32, dim))))


class WordEncoder:
    """A text encoder of hashed words: near where words are equal. Its states know a token and nothing of its place."""

    def __init__(self, dim: int = 64) -> None:
        self.dim, self.model_id = dim, f"test/words{dim}"

    def embed(self, texts: Any) -> Any:
        return np.array([word_vector(text, self.dim) for text in texts], dtype=np.float32).reshape(-1, self.dim)

    def states(self, texts: Any, max_tokens: int) -> Any:
        split = [(words(text) or [""])[:max_tokens] for text in texts]
        tokens = self.embed([word for text in split for word in text])
        return tokens, np.concatenate([[0], np.cumsum([len(text) for text in split])]).astype(np.int64)


def one_by_one(queries: Queries) -> list[Queries]:
    return list(queries.batches(1))


def backwards(queries: Queries) -> Queries:
    return Queries(queries.frame.reverse())


def with_history(queries: Queries, history: list[Any], weight: float = 1.0) -> Queries:
    """The first query alone, with another history; its times are all the query's moment."""
    frame = queries.frame.head(1)
    at = frame["at"].item()
    columns = {"history": history, "weights": [weight] * len(history), "times": [at] * len(history)}
    return Queries(
        frame.with_columns(pl.Series(name, [values], dtype=frame.schema[name]) for name, values in columns.items())
    )


def assert_ranks_a_stranger(
    reranker: Any, queries: Queries, candidates: Candidates, profiles: Profiles, catalog: Catalog
) -> None:
    """One candidate, nobody's profile, and a history of items that are not known: an answer all the same."""
    one = Candidates(candidates.frame.filter(pl.col("rank") == 1))
    strange = queries.frame.with_columns(
        history=pl.col("history").list.eval(pl.concat([pl.lit("nobody"), pl.element()])).list.head(1),
        weights=pl.lit([1.0]),
        times=pl.concat_list("at"),
    )
    nobody = Profiles(profiles.frame.clear())
    for some in (queries, Queries(strange)):
        answer = reranker.rerank(some, one, nobody, catalog)
        assert len(answer) == len(one)
        assert answer.frame["score"].is_finite().all()


def assert_same_candidates(left: Candidates, right: Candidates) -> None:
    """The same items in the same order for every query, with the same scores; the order of queries is free."""
    key = ["query_id", "rank"]
    assert_frame_equal(
        left.frame.sort(key), right.frame.sort(key), check_column_order=False, abs_tol=TOLERANCE, rel_tol=TOLERANCE
    )


def assert_well_formed(candidates: Candidates, queries: Queries, n: int) -> None:
    """Ranks 1..m without gaps in the rows' own order, scores not increasing, no item twice, at most `n` a query."""
    frame = candidates.frame
    assert set(frame["query_id"]) <= set(queries.frame["query_id"])
    for _, rows in frame.group_by("query_id", maintain_order=True):
        assert rows["rank"].to_list() == list(range(1, len(rows) + 1))
        assert len(rows) <= n
        assert rows["score"].is_finite().all()
        assert (rows["score"].diff().drop_nulls() <= 0).all()
        assert rows["item_id"].is_unique().all()


def assert_no_pickle(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, f"nothing was saved in {folder}"
    for path in files:
        assert path.suffix not in {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin"}, path.name
        assert not path.read_bytes().startswith(PICKLES), path.name


def mean_ndcg(candidates: Candidates, truth: pl.DataFrame, k: int = 10) -> float:
    """NDCG@k where each query has one right answer: the mean of 1 / log2(1 + rank), 0 beyond k or where missing."""
    found = truth.join(candidates.frame, on=["query_id", "item_id"], how="left")["rank"]
    return sum(1 / math.log2(1 + rank) for rank in found if rank is not None and rank <= k) / len(truth)


class HashLM:
    """Scores that look like noise but depend on the texts alone; never repeats itself over different texts."""

    model_id = "test/hash"

    def generate(self, prompts: Any, *, max_tokens: int = 128, stop: Any = ()) -> list[str]:
        """Labels in an order that looks random, which is what a ranking model is asked for."""
        return [" > ".join(f"[{label}]" for label in sorted(LABELS, key=lambda x: _digest(p, x))) for p in prompts]

    def score(self, prompts: Any, answers: Any) -> list[list[Score]]:
        return [[self.one(p, a) for a in some] for p, some in zip(prompts, answers, strict=True)]

    def one(self, prompt: str, answer: str) -> Score:
        digest = hashlib.sha256(f"{prompt}\0{answer}".encode()).digest()
        return Score(-int.from_bytes(digest[:4], "big") / 2**28, 1 + digest[4] % 12)


LABELS = [chr(ord("A") + place) for place in range(26)]


def _digest(*texts: str) -> bytes:
    return hashlib.sha256("\0".join(texts).encode()).digest()


class ConstantLM(HashLM):
    """One and the same score for everything; the score may be anything that a broken model can say."""

    def __init__(self, logprob: float, tokens: int) -> None:
        self.constant = Score(logprob, tokens)
        self.model_id = f"test/constant{logprob}/{tokens}"

    def one(self, prompt: str, answer: str) -> Score:
        return self.constant


class SayingLM(HashLM):
    """One and the same text as the answer to everything."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.model_id = f"test/saying{len(text)}"

    def generate(self, prompts: Any, *, max_tokens: int = 128, stop: Any = ()) -> list[str]:
        return [self.text for _ in prompts]


MODELS = {
    "noise": HashLM(),
    "all equal": ConstantLM(-3.0, 4),
    "no tokens": ConstantLM(0.0, 0),
    "impossible": ConstantLM(-math.inf, 3),
    "not a number": ConstantLM(math.nan, 3),
    "huge": ConstantLM(-1e300, 1),
    "mute": SayingLM(""),
    "babbling": SayingLM("I am sorry, as a model 99 I cannot [zz] rank A Movie (1999) > ... \u0000 \U0001f600"),
    "the same again": SayingLM("[B] > [B] > [B] > [B]"),
    "far too much": SayingLM("[C], " * 5000),
}
