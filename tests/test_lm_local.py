"""Scoring and writing by a local model: a tiny one with random weights, and the real default."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import ModelError, SpecError, WeightsError
from recsys.lm import LMConfig, LocalLM, ReplayLM, load_lm, resolved
from recsys.lm.device import auto_dtype
from recsys.lm.packing import chunks, layout
from recsys.lm.replay import ScriptedLM
from recsys.lm.usage import context_of, count, usage_of
from recsys.lm.weights import resolve
from recsys.protocols import LanguageModel
from recsys.settings import Settings

PROMPT = "Recently enjoyed: Heat, Ran, Stalker. Next:"
ANSWERS = [" Solaris", " M", "", " The Third Man (1949)", " Solaris", " x" * 30]


def make_tiny_model(folder: Path) -> Path:
    """A random two-layer Llama over bytes, saved as any model folder is. No chat template, 256 tokens of context."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<|endoftext|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def tiny_lm(tiny_folder: Path) -> LocalLM:
    settings = Settings(device="cpu", threads=2)
    lm = load_lm(LMConfig(model=str(tiny_folder), dtype="float32"), settings)
    assert isinstance(lm, LocalLM)
    return lm


def separately(lm: LocalLM, prompt: str, answer: str) -> float:
    """The same figure from one plain forward pass over prompt and answer, with nothing shared and nothing clever."""
    import torch

    before = [*lm.start, *lm.tokenizer(prompt, add_special_tokens=False).input_ids]
    after = lm.tokenizer(answer, add_special_tokens=False).input_ids
    with torch.inference_mode():
        logprobs = lm.model(torch.tensor([before + after])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[len(before) + j - 1, token]) for j, token in enumerate(after))


def assert_equals_separate_prompts(lm: LocalLM) -> None:
    (scores,) = lm.score([PROMPT], [ANSWERS])
    for answer, score in zip(ANSWERS, scores, strict=True):
        assert score.tokens == len(lm.tokenizer(answer, add_special_tokens=False).input_ids)
        assert score.logprob == pytest.approx(separately(lm, PROMPT, answer), abs=1e-4)


def test_packed_scores_equal_those_of_separate_prompts(tiny_lm: LocalLM) -> None:
    assert isinstance(tiny_lm, LanguageModel)
    assert_equals_separate_prompts(tiny_lm)


@pytest.mark.parametrize("max_packed", [1, 7, 40, 70])
def test_answers_in_several_passes_score_the_same(tiny_lm: LocalLM, max_packed: int) -> None:
    assert_equals_separate_prompts(dataclasses.replace(tiny_lm, max_packed=max_packed))


def test_the_order_of_answers_changes_no_score(tiny_lm: LocalLM) -> None:
    (forwards,) = tiny_lm.score([PROMPT], [ANSWERS])
    (backwards,) = tiny_lm.score([PROMPT], [ANSWERS[::-1]])
    for one, other in zip(forwards, backwards[::-1], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_batch_of_prompts_scores_exactly_as_each_alone(tiny_lm: LocalLM) -> None:
    prompts, answers = ["", PROMPT, "short"], [ANSWERS, ANSWERS[:2], []]
    batch = tiny_lm.score(prompts, answers)
    assert batch == [tiny_lm.score([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    assert batch[2] == []
    assert batch[0][2].mean == 0.0


def test_single_token_answers_need_no_token_of_their_own_in_the_pass(tiny_lm: LocalLM) -> None:
    single = dataclasses.replace(tiny_lm, max_packed=1)
    (scores,) = single.score([PROMPT], [["a", "b", "c"]])
    for answer, score in zip("abc", scores, strict=True):
        assert score.logprob == pytest.approx(separately(tiny_lm, PROMPT, answer), abs=1e-4)


def test_a_prompt_beyond_the_context_loses_its_front_and_says_so(
    tiny_lm: LocalLM, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (long,) = tiny_lm.score(["start " * 200 + PROMPT], [[" M"]])
    assert "1 of 1 texts cut to 253 tokens" in caplog.text
    kept = ("start " * 200 + PROMPT)[-253:]
    assert long[0].logprob == pytest.approx(separately(tiny_lm, kept, " M"), abs=1e-4)


def test_an_answer_of_ten_thousand_characters_is_cut_and_counted(
    tiny_lm: LocalLM, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (scores,) = tiny_lm.score([PROMPT], [["y" * 10_000, " M"]])
    assert scores[0].tokens == 128
    assert "1 of 2 texts cut to 128 tokens" in caplog.text


def test_tokens_are_counted_and_the_context_is_told_also_behind_a_store_of_answers(
    tiny_lm: LocalLM, tmp_path: Path
) -> None:
    stored = ReplayLM(tiny_lm, tmp_path)
    ((score,),) = tiny_lm.score(["Next:"], [[" Ran and Heat"]])
    for lm in (tiny_lm, stored):
        assert count(lm, " Ran and Heat") == score.tokens
        assert context_of(lm) == tiny_lm.context
        assert usage_of(lm) is None
    assert count(ScriptedLM(), "x" * 400) == 101


def test_special_tokens_in_a_text_are_plain_text(tiny_lm: LocalLM) -> None:
    (scores,) = tiny_lm.score([PROMPT], [["<|im_end|>", "<|endoftext|>"]])
    assert [s.tokens for s in scores] == [len("<|im_end|>"), len("<|endoftext|>")]


def test_writing_is_greedy_deterministic_and_the_same_in_a_batch(tiny_lm: LocalLM) -> None:
    import torch

    prompts = [PROMPT, "a", "b" * 50, "another prompt", *(f"number {i}" for i in range(8))]
    batch = tiny_lm.generate(prompts, max_tokens=12)
    assert batch == tiny_lm.generate(prompts, max_tokens=12)
    assert batch == [tiny_lm.generate([prompt], max_tokens=12)[0] for prompt in prompts]
    ids = [*tiny_lm.start, *tiny_lm.tokenizer(PROMPT).input_ids]
    for _ in range(12):
        with torch.inference_mode():
            ids.append(int(tiny_lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
    by_hand = tiny_lm.tokenizer.decode(ids[-12:], skip_special_tokens=True).strip()
    assert batch[0] == by_hand


def test_writing_stops_before_a_stop_string(tiny_lm: LocalLM) -> None:
    (free,) = tiny_lm.generate([PROMPT], max_tokens=12)
    stop = free[3:5]
    (cut,) = tiny_lm.generate([PROMPT], max_tokens=12, stop=["never said", stop])
    assert cut == free[: free.find(stop)].strip()


def test_no_prompts_no_texts(tiny_lm: LocalLM) -> None:
    assert tiny_lm.generate([]) == []
    assert tiny_lm.score([], []) == []


def test_more_tokens_than_the_context_holds_are_refused(tiny_lm: LocalLM) -> None:
    with pytest.raises(ModelError, match="context of 256 tokens leaves no room"):
        tiny_lm.generate([PROMPT], max_tokens=256)


def test_what_torch_raises_becomes_a_model_error(tiny_lm: LocalLM) -> None:
    class Broken:
        device, dtype, generation_config = tiny_lm.model.device, tiny_lm.model.dtype, tiny_lm.model.generation_config

        def __call__(self, **_: Any) -> Any:
            raise RuntimeError("not enough memory: you tried to allocate\nmuch")

        generate = __call__

    broken = dataclasses.replace(tiny_lm, model=Broken())
    with pytest.raises(ModelError, match=r"tiny-llama@[0-9a-f]{8}:fp32: not enough memory: you tried to allocate$"):
        broken.score([PROMPT], [[" M"]])


def test_the_model_id_names_weights_hash_and_dtype(tiny_lm: LocalLM, tiny_folder: Path, settings: Settings) -> None:
    digest = resolve(str(tiny_folder), settings).sha256
    assert tiny_lm.model_id == f"tiny-llama@{digest[:8]}:fp32"
    half = LocalLM.load(resolve(str(tiny_folder), settings), settings, dtype="bfloat16")
    assert half.model_id.endswith(":bf16")


def test_a_resolved_config_names_the_same_model_on_a_machine_of_another_kind(
    tiny_folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitted where bf16 is computed natively, loaded where "auto" would mean fp32, and the other way round."""
    auto = LMConfig(model=str(tiny_folder))
    for here, elsewhere, short in (("bfloat16", "float32", "bf16"), ("float32", "bfloat16", "fp32")):
        monkeypatch.setattr("recsys.lm.auto_dtype", lambda _, dtype=here: dtype)
        pinned = resolved(auto, settings)
        assert pinned == auto.model_copy(update={"dtype": here})
        fitted = load_lm(auto, settings)
        monkeypatch.setattr("recsys.lm.auto_dtype", lambda _, dtype=elsewhere: dtype)
        loaded = load_lm(pinned, settings)
        assert fitted is not None
        assert loaded is not None
        assert fitted.model_id == loaded.model_id
        assert loaded.model_id.endswith(f":{short}")
        (one,), (other,) = (lm.score([PROMPT], [ANSWERS]) for lm in (fitted, loaded))
        assert one == other


@pytest.mark.parametrize(
    ("able", "dtype"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx512_f": True, "avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"neon": True, "bf16": True}, "bfloat16"),
        ({"neon": True}, "float32"),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_it_has_instructions_for_it(
    able: dict[str, bool], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN says of any AVX-512 that bf16 is supported, and emulates it."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
    assert auto_dtype("cpu") == dtype
    assert auto_dtype("mps") == "float32"


def test_only_the_dtype_of_a_local_model_is_resolved(settings: Settings) -> None:
    assert resolved(LMConfig(), settings).dtype in ("float32", "bfloat16")
    for config in (LMConfig(kind="none"), LMConfig(kind="remote", model="m"), LMConfig(dtype="float16")):
        assert resolved(config, settings) is config
    with pytest.raises(SpecError, match="device 'abacus' cannot be used here"):
        resolved(LMConfig(), settings.model_copy(update={"device": "abacus"}))


def test_a_recording_config_keeps_every_answer_in_the_cache(tiny_folder: Path, settings: Settings) -> None:
    config = LMConfig(model=str(tiny_folder), dtype="float32")
    plain, recording = load_lm(config, settings), load_lm(config.model_copy(update={"record": True}), settings)
    assert isinstance(plain, LocalLM)
    assert isinstance(recording, ReplayLM)
    assert recording.model_id == plain.model_id
    scores, texts = recording.score([PROMPT], [ANSWERS]), recording.generate([PROMPT], max_tokens=5)
    assert texts == plain.generate([PROMPT], max_tokens=5)
    replayed = ReplayLM(plain, settings.cache_dir / "replay", mode="replay-only")
    assert replayed.score([PROMPT], [ANSWERS]) == scores
    assert replayed.generate([PROMPT], max_tokens=5) == texts


def test_a_folder_that_is_no_language_model_is_a_weights_error(
    tiny_folder: Path, tmp_path: Path, settings: Settings
) -> None:
    for name in ("model.safetensors", "config.json"):
        broken = tmp_path / name
        broken.mkdir()
        for file in tiny_folder.iterdir():
            (broken / file.name).write_bytes(b"{}" if file.name == name else file.read_bytes())
        with pytest.raises(WeightsError, match="is not a causal LM that can be loaded"):
            LocalLM.load(resolve(str(broken), settings), settings)


def test_a_device_that_is_not_there_is_named(tiny_folder: Path) -> None:
    with pytest.raises(SpecError, match="device 'abacus' cannot be used here"):
        load_lm(LMConfig(model=str(tiny_folder)), Settings(device="abacus"))


def test_configs_choose_the_door(settings: Settings) -> None:
    assert load_lm(LMConfig(kind="none"), settings) is None
    with pytest.raises(SpecError, match="RECSYS_LM_URL"):
        load_lm(LMConfig(kind="remote", model="m"), settings)


def test_layout_lets_an_answer_see_the_prompt_and_itself_only() -> None:
    places, sees = layout(2, [2, 1])
    assert places.tolist() == [0, 1, 2, 3, 2]
    assert sees.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_chunks_stay_within_the_limit_and_lose_nothing() -> None:
    answers = [[0] * n for n in (3, 0, 3, 9, 1, 2)]
    assert list(chunks(answers, 6)) == [[0, 2], [3], [4, 5]]


@pytest.mark.weights
def test_the_real_model_packs_as_it_reads_separately(weights_settings: Settings, small_lm: Any) -> None:
    lm = LocalLM.load(resolve("smollm2-135m-instruct", weights_settings), weights_settings, dtype="float32")
    assert_equals_separate_prompts(lm)
    assert_equals_separate_prompts(dataclasses.replace(lm, max_packed=12))


@pytest.mark.weights
def test_the_real_model_knows_what_is_likely(small_lm: Any) -> None:
    (scores,) = small_lm.score(["The capital of France is"], [[" Paris", " Berlin", " purple"]])
    assert scores[0].mean > scores[1].mean > scores[2].mean
    (answer,) = small_lm.generate(["What is the capital of France? Answer in one word."], max_tokens=12)
    assert "Paris" in answer


@pytest.mark.weights
def test_the_converted_tokenizer_reads_as_the_model_was_trained(small_lm: Any) -> None:
    """Digits one by one before spaces and line breaks are grouped; nothing lost on the way back; no BOS added."""
    tokenizer = small_lm.tokenizer
    texts = ["été ☃ 日本 🎬", "Wallace & Gromit (1996)", "a  b\t\tc\n\nd", " Heat, The"]
    assert [tokenizer.decode(tokenizer(text).input_ids) for text in texts] == texts
    assert tokenizer.tokenize("\n\n1 in  1977") == ["ĊĊ", "1", "Ġin", "ĠĠ", "1", "9", "7", "7"]
    assert tokenizer("").input_ids == []
    assert tokenizer.convert_ids_to_tokens(list(small_lm.start)) == ["<|endoftext|>"]
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert turn.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
