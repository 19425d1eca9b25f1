"""An encoder that remembers its last questions."""

from typing import Any

import numpy as np

from checks import WordEncoder
from recsys.lm.recent import KEPT, RecentEncoder
from recsys.protocols import TextEncoder


class Counting(WordEncoder):
    """Counts what it is asked: `states` asks `embed`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def embed(self, texts: Any) -> Any:
        self.asked += 1
        return super().embed(texts)


def test_it_answers_as_its_encoder_and_asks_it_once() -> None:
    plain, counting = WordEncoder(), Counting()
    recent = RecentEncoder(counting)
    assert isinstance(recent, TextEncoder)
    assert recent.model_id == plain.model_id
    for texts in (["one two"], ["one two", "three"], [], [""]):
        for _ in range(3):
            assert np.array_equal(recent.embed(texts), plain.embed(texts))
            for own, theirs in zip(recent.states(texts, 1), plain.states(texts, 1), strict=True):
                assert np.array_equal(own, theirs)
    assert counting.asked == 8


def test_other_questions_are_asked_and_old_ones_forgotten() -> None:
    counting = Counting()
    recent = RecentEncoder(counting)
    assert len(recent.states(["one two"], 1)[0]) == 1
    assert len(recent.states(["one two"], 9)[0]) == 2
    for n in range(KEPT + 1):
        recent.embed([str(n)])
    before = counting.asked
    recent.embed(["0"])
    assert counting.asked == before + 1
