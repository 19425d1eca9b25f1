"""Recorded answers come back without the model; scripted models do what they are told."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from checks import HashLM
from recsys.errors import ModelError, StorageError
from recsys.lm.replay import ReplayLM, ScriptedLM, forget
from recsys.protocols import LanguageModel, Score

ROOT = Path(__file__).parents[1]


def test_a_recorded_answer_is_replayed_without_asking_again(tmp_path: Path) -> None:
    lm = ScriptedLM(reply=lambda prompt: prompt.upper())
    recorder = ReplayLM(lm, tmp_path)
    assert isinstance(recorder, LanguageModel)
    assert recorder.generate(["a", "b", "a"], stop=["."]) == ["A", "B", "A"]
    scores = recorder.score(["p", "q"], [["x y", "z"], ["x y"]])
    assert len(lm.calls) == 2 + 3

    silent = ScriptedLM(fails=True)
    replayed = ReplayLM(silent, tmp_path, mode="replay-only")
    assert replayed.generate(["b", "a"], stop=["."]) == ["B", "A"]
    assert replayed.score(["q", "p"], [["x y"], ["z", "x y"]]) == [scores[1], scores[0][::-1]]
    assert silent.calls == []


def test_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    lm = ScriptedLM()
    recorder = ReplayLM(lm, tmp_path)
    recorder.score(["p"], [["x"]])
    assert recorder.score(["p", "q"], [["x", "y"], []]) == [ScriptedLM().score(["p"], [["x", "y"]])[0], []]
    assert lm.calls == [("score", "p"), ("score", "p")]


def test_an_answer_belongs_to_its_model_its_parameters_and_its_operation(tmp_path: Path) -> None:
    ReplayLM(ScriptedLM(reply="A"), tmp_path).generate(["a"], max_tokens=5)
    for lm, asked in (
        (ScriptedLM(), {"max_tokens": 6}),
        (ScriptedLM(), {"max_tokens": 5, "stop": ["x"]}),
        (ScriptedLM(model_id="another"), {"max_tokens": 5}),
    ):
        with pytest.raises(ModelError, match="no recorded answer"):
            ReplayLM(lm, tmp_path, mode="replay-only").generate(["a"], **asked)  # type: ignore[arg-type]


def test_a_missing_prompt_is_named_by_its_hash(tmp_path: Path) -> None:
    replayed = ReplayLM(HashLM(), tmp_path, mode="replay-only")
    with pytest.raises(ModelError, match=r"of test/hash for 2 prompts, the first generate [0-9a-f]{16}: record them"):
        replayed.generate(["a", "b"])
    with pytest.raises(ModelError, match="for 1 prompts, the first score"):
        replayed.score(["a"], [["b"]])


def test_impossible_likelihoods_survive_the_store(tmp_path: Path) -> None:
    recorder = ReplayLM(ScriptedLM(likelihood=lambda _, a: math.nan if a == "n" else -math.inf), tmp_path)
    for _ in range(2):
        ((nan, inf),) = recorder.score(["p"], [["n", "i"]])
        assert math.isnan(nan.logprob)
        assert inf == Score(-math.inf, 1)


def test_a_failure_of_the_model_records_nothing_and_loses_nothing(tmp_path: Path) -> None:
    ReplayLM(ScriptedLM(reply="A"), tmp_path).generate(["a"])
    failing = ReplayLM(ScriptedLM(fails=lambda prompt: prompt == "c"), tmp_path)
    with pytest.raises(ModelError, match="told to fail"):
        failing.generate(["a", "b", "c"])
    replayed = ReplayLM(ScriptedLM(), tmp_path, mode="replay-only")
    assert replayed.generate(["a"]) == ["A"]
    with pytest.raises(ModelError, match="for 1 prompts"):
        replayed.generate(["a", "b"])


def test_threads_share_a_store(tmp_path: Path) -> None:
    recorder = ReplayLM(HashLM(), tmp_path)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda i: recorder.generate([f"prompt {i % 10}"])[0], range(40)))
    assert texts == HashLM().generate([f"prompt {i % 10}" for i in range(40)])


def test_processes_share_a_store(tmp_path: Path) -> None:
    """Started at once on a store that is not there yet, each writing what the others write too."""
    code = (
        "import sys; from pathlib import Path; from recsys.lm.replay import ReplayLM, ScriptedLM\n"
        "lm = ReplayLM(ScriptedLM(reply=str.upper), Path(sys.argv[1]))\n"
        "for i in range(40): assert lm.generate([f'prompt {i}', sys.argv[2] + f' {i}'])[0] == f'PROMPT {i}'"
    )
    commands = [[sys.executable, "-c", code, str(tmp_path / "replay"), name] for name in "abc"]
    started = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate()[1] for process in started] == ["", "", ""]
    assert [process.returncode for process in started] == [0, 0, 0]
    replayed = ReplayLM(ScriptedLM(fails=True), tmp_path / "replay", mode="replay-only")
    prompts = [f"{name} {i}" for name in ("prompt", *"abc") for i in range(40)]
    assert replayed.generate(prompts) == [prompt.upper() for prompt in prompts]


def test_a_store_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"this is not a database, " * 100)
    with pytest.raises(StorageError, match=r"answers\.sqlite: the store of LM answers cannot be used"):
        ReplayLM(HashLM(), tmp_path).generate(["a"])
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used"):
        ReplayLM(HashLM(), tmp_path / "file").generate(["a"])


def test_what_is_forgotten_is_in_no_byte_and_the_rest_stays(tmp_path: Path) -> None:
    recorder = ReplayLM(ScriptedLM(reply=lambda p: "You like “Ran”\nand żubrówka" if "Ann" in p else "fine"), tmp_path)
    recorder.generate(["About Ann", "About Bob", 'About Cid: "loves  Zeppelins"', "About Dan"], stop=["Eve's"])
    recorder.score(["prefix", "prefix"], [[' She said "no more gore".'], [" He did not."]])
    assert recorder.forget([]) == recorder.forget(["", " "]) == recorder.forget(["nobody said this"]) == 0
    assert recorder.forget(["like 'Ran' and ŻUBRÓWKA", "'Loves zeppelins'", "said 'no more gore'"]) == 3
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [word for word in (b"Ann", b"wka", b"Zeppelins", b"gore") if word in left] == []
    replayed = ReplayLM(ScriptedLM(), tmp_path, mode="replay-only")
    assert replayed.generate(["About Bob", "About Dan"], stop=["Eve's"]) == ["fine", "fine"]
    assert replayed.score(["prefix"], [[" He did not."]])
    with pytest.raises(ModelError, match="no recorded answer"):
        replayed.generate(["About Ann"], stop=["Eve's"])


def test_forgetting_makes_no_store_and_names_one_that_is_none(tmp_path: Path) -> None:
    assert forget(tmp_path / "nowhere", ["a text"]) == 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "answers.sqlite").write_bytes(b"this is not a database, " * 100)
    with pytest.raises(StorageError, match=r"answers\.sqlite: the store of LM answers cannot be used"):
        forget(tmp_path, ["a text"])


def test_a_scripted_model_says_what_it_is_told() -> None:
    assert ScriptedLM(reply="yes").generate(["a", "b"]) == ["yes", "yes"]
    assert ScriptedLM(reply={"a": "b"}).generate(["a"]) == ["b"]
    with pytest.raises(ModelError, match="no reply to 'c'"):
        ScriptedLM(reply={"a": "b"}).generate(["c"])
    assert ScriptedLM(likelihood=-2.0).score(["p"], [["two words", ""]]) == [[Score(-4.0, 2), Score(0.0, 0)]]
    assert ScriptedLM(likelihood={("p", "x"): -1.5}).score(["p"], [["x"]]) == [[Score(-1.5, 1)]]
    with pytest.raises(ModelError, match="no likelihood of 'y' after 'p'"):
        ScriptedLM(likelihood={}).score(["p"], [["y"]])


def test_a_scripted_model_without_a_script_looks_random_and_is_not() -> None:
    one, two = ScriptedLM().score(["p", "q"], [["x", "y"], ["x"]])
    assert ScriptedLM().score(["p"], [["x", "y"]]) == [one]
    assert len({s.logprob for s in [*one, *two]}) == 3
    assert all(-8 <= s.logprob < 0 for s in [*one, *two])
