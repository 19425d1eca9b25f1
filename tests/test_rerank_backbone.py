"""Layers of a language model as the sequence reranker's reader: what of them is learned, kept, and refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from polars.testing import assert_frame_equal
from pydantic import ValidationError
from test_docs import README, keys_of, tables
from test_lm_local import make_tiny_model
from test_rerank_sequence import SMALL, listening, school_of

from checks import WordEncoder, assert_same_candidates, one_by_one, with_word_vectors
from recsys.data.split import Questions
from recsys.errors import BundleError, SpecError, WeightsError
from recsys.lm.weights import Weights, resolve
from recsys.rerank import SequenceConfig, load_reranker
from recsys.rerank.backbone import BackboneConfig, first_layers
from recsys.rerank.reader import Backbone, Reader, states_after
from recsys.rerank.sequence import SequenceJudge
from recsys.rerank.train import Course, School
from recsys.settings import Settings
from recsys.tables import Queries

SEED = 3  # not that of the tiny model's own random weights
KINDS = ("frozen", "lora", "top", "all", "random")
Get = Callable[[str], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def weights(folder: Path) -> Weights:
    return resolve(str(folder), Settings(offline=True))


@pytest.fixture(scope="module")
def school(world: Any, world_split: Any, tmp_path_factory: pytest.TempPathFactory) -> School:
    return school_of(world, world_split, with_word_vectors(world.catalog), tmp_path_factory.mktemp("school"))


def config(folder: Path, kind: str, **changed: Any) -> SequenceConfig:
    backbone = BackboneConfig.model_validate({"model": str(folder), "layers": 2, "weights": kind, "rank": 2, **changed})
    quick = {"epochs": 1, "written": 0, "told": 60, "finish": 0, "accumulate": 2}
    return SMALL.model_copy(update={**quick, "backbone": backbone})


@pytest.fixture(scope="module")
def courses(folder: Path, school: School) -> Get:
    made: dict[str, Course] = {}

    def get(kind: str) -> Course:
        return made.setdefault(kind, Course.of(config(folder, kind), school, SEED))

    return get


@pytest.fixture(scope="module")
def trained(courses: Get) -> Get:
    """Each kind's network after an epoch, trained when it is first asked for."""
    made: dict[str, Reader] = {}

    def get(kind: str) -> Reader:
        if kind not in made:
            made[kind] = courses(kind).explore()
        return made[kind]

    return get


def backbone_of(network: Reader) -> Backbone:
    (block,) = network.blocks
    assert isinstance(block, Backbone)
    return block


def layers_of(network: Reader) -> dict[str, torch.Tensor]:
    return dict(backbone_of(network).layers.named_parameters())


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def start_of(course: Course) -> Reader:
    """The network before training, as `explore` starts it."""
    from recsys.networks.chunks import hold_out

    return course._network(hold_out(course.histories, course.config.heldout, course.seed)[0])


def queries_of(world_split: Any, n: int = 12) -> Queries:
    return Queries(world_split.questions("test").queries.frame.head(n))


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_the_recipe_says_is_learned(kind: str, trained: Get, courses: Get) -> None:
    before, network = start_of(courses(kind)), trained(kind)
    learned = moved(layers_of(before), layers_of(network))
    every = set(layers_of(network))
    assert "blocks.0.enter.weight" in moved(dict(before.named_parameters()), dict(network.named_parameters()))
    if kind == "frozen":
        assert learned == set()
    elif kind == "lora":
        assert learned == {name for name in every if "lora_" in name}
        assert len({name.rpartition(".lora_")[0] for name in learned}) == 2 * 7  # every linear layer of both
    elif kind == "top":
        assert learned == {name for name in every if name.startswith("layers.1.")}
    else:
        assert learned == every


@pytest.mark.parametrize("kind", KINDS)
def test_layers_start_as_the_language_model_or_at_random(kind: str, courses: Get, folder: Path) -> None:
    from transformers import AutoModel

    theirs = dict(AutoModel.from_pretrained(folder).named_parameters())
    ours = layers_of(start_of(courses(kind)))
    same = {name for name, value in theirs.items() if torch.equal(ours.get(name.replace("proj", "proj.base_layer"),
            ours.get(name, torch.zeros(0))), value)}  # fmt: skip
    if kind == "random":
        assert not any("proj" in name for name in same)
        again = layers_of(start_of(courses(kind)))
        assert not moved(ours, again)
    else:
        assert same == theirs.keys() - {"embed_tokens.weight"}


def test_random_layers_are_others_by_another_seed(folder: Path, school: School) -> None:
    quick = config(folder, "random").model_copy(update={"told": 0})
    one, other = (layers_of(start_of(Course.of(quick, school, seed))) for seed in (SEED, 5))
    assert {name for name in one if "norm" not in name} == moved(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_equals_singles(kind: str, trained: Get, courses: Get, school: School, world_split: Any) -> None:
    judge: SequenceJudge = courses(kind).judge(trained(kind))
    queries = queries_of(world_split)
    sizes = queries.frame["history"].list.len()
    assert sizes.n_unique() > 3  # so that there is padding
    profiles = school.describe.as_of(queries)
    whole = judge.scores(queries, profiles)
    for row, query in enumerate(one_by_one(queries)):
        np.testing.assert_allclose(judge.scores(query, profiles)[0], whole[row], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_ranks_alike_and_the_language_model_is_not_copied(
    kind: str, trained: Get, courses: Get, school: School, world_split: Any, weights: Weights, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from test_rerank_packed import noisy_candidates

    questions = world_split.questions("test")
    queries = queries_of(world_split)
    case = (
        queries,
        noisy_candidates(Questions(queries, type(questions.truth)(questions.truth.frame.head(12))), school.catalog, 20),
        school.describe.as_of(queries),
        school.catalog,
    )
    fused = listening(courses(kind).judge(trained(kind)))
    fused.save(tmp_path / "part")
    loaded = load_reranker("sequence", tmp_path / "part", lambda: None, WordEncoder, lambda _: weights)
    assert_same_candidates(loaded.rerank(*case), fused.rerank(*case))
    with safe_open(tmp_path / "part" / "judge" / "network.safetensors", "numpy") as file:
        kept = {key.removeprefix("reader.blocks.0.layers.") for key in file.keys() if ".layers." in key}  # noqa: SIM118  # no dict
    learned = {name for name, value in layers_of(trained(kind)).items() if value.requires_grad}
    assert kept == learned
    assert (len(kept) == 0) == (kind == "frozen")


@pytest.mark.parametrize("kind", ["frozen", "lora"])
def test_another_language_model_is_refused(
    kind: str, trained: Get, courses: Get, weights: Weights, folder: Path, tmp_path: Path
) -> None:
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    listening(courses(kind).judge(trained(kind))).save(tmp_path / "part")
    other = copytree(folder, tmp_path / folder.name)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    altered = resolve(str(other), Settings(offline=True))
    said = f"was fitted over the language model '{weights.short_id}', but '{altered.short_id}' is there"
    with pytest.raises(BundleError, match=said):
        load_reranker("sequence", tmp_path / "part", lambda: None, WordEncoder, lambda _: altered)
    with pytest.raises(WeightsError, match="nothing here says where weights lie"):
        load_reranker("sequence", tmp_path / "part", lambda: None, WordEncoder)


def test_a_bundle_finds_the_language_model_by_its_name(
    world: Any, folder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shutil import copytree, rmtree

    from recsys import bundle
    from recsys.candidates import PopularConfig
    from recsys.lm import LMConfig
    from recsys.spec import Spec, fit

    for module in ("spec", "bundle"):
        monkeypatch.setattr(f"recsys.{module}.load_encoder", lambda *_: WordEncoder())
    own = copytree(folder, tmp_path / "own-llama")
    spec = Spec(generator=PopularConfig(), lm=LMConfig(kind="none"), reranker=config(own, "lora"))
    line = fit(world, spec, settings, seed=0)
    path = bundle.write(tmp_path / "bundle", line.recommender, world, spec=spec)
    loaded = bundle.load(path, settings)
    queries = Queries(loaded.queries().frame.head(5))
    assert_frame_equal(loaded.recommender.recommend(queries, 5).frame, line.recommender.recommend(queries, 5).frame)
    rmtree(own)
    with pytest.raises(WeightsError, match="own-llama' names no weights"):
        bundle.load(path, settings)


def test_an_interrupted_training_goes_on_to_the_same_weights(
    courses: Get, trained: Get, folder: Path, school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs in one go, and with a stop after the first."""
    from recsys.rerank import train

    two = config(folder, "lora").model_copy(update={"epochs": 2})
    whole = Course.of(two, school, SEED).explore()
    measure, calls = train.heldout_quality, []

    def stop(*given: Any) -> float:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*given)

    course = Course.of(two, school, SEED)
    with monkeypatch.context() as patch:
        patch.setattr(train, "heldout_quality", stop)
        with pytest.raises(KeyboardInterrupt):
            course.explore()
    again = course.explore()
    assert len(course.report["heldout_ndcg@10"]) == 2
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_finishing_leaves_what_was_explored_as_it_was_and_shares_what_is_frozen(
    folder: Path, school: School, trained: Get
) -> None:
    course = Course.of(config(folder, "lora").model_copy(update={"finish": 1}), school, SEED)
    explored = trained("lora")
    before = {name: value.clone() for name, value in explored.named_parameters()}
    finished = course.finish(explored, school.known)
    assert not moved(before, dict(explored.named_parameters()))
    for name, value in layers_of(finished).items():
        assert (value.data_ptr() == layers_of(explored)[name].data_ptr()) == (not value.requires_grad)


def test_the_state_at_a_place_knows_nothing_of_what_comes_later(trained: Get, courses: Get) -> None:
    network, items = trained("all"), len(courses("all").vocab)
    with torch.inference_mode():
        tokens, _ = network.table()
        long = torch.arange(12)[None] % items
        other = long.clone()
        other[:, 6:] = (other[:, 6:] + 5) % items
        one, two = network.states(long, tokens), network.states(other, tokens)
    torch.testing.assert_close(one[:, :7], two[:, :7], atol=1e-5, rtol=0)
    assert (one[:, 7:] - two[:, 7:]).abs().max() > 1e-3


def test_without_a_history_there_is_a_state_too(trained: Get) -> None:
    from recsys.data.vocab import Histories

    network = trained("frozen")
    nothing = np.empty(0, np.int64)
    empty = Histories(np.zeros(3, np.int64), nothing.astype(np.int32), nothing.astype(np.float32), nothing)
    with torch.inference_mode():
        found = states_after(network, empty, network.table()[0])
    assert found.shape == (2, network.size.dim)
    assert torch.isfinite(found).all()


def test_fewer_layers_are_the_first_ones(weights: Weights) -> None:
    whole = first_layers(BackboneConfig(model="x", layers=2, weights="all"), weights, 9)
    cut = first_layers(BackboneConfig(model="x", layers=1, weights="all"), weights, 9)
    theirs = dict(whole.named_parameters())
    assert len(dict(cut.named_parameters())) < len(theirs)
    for name, value in cut.named_parameters():
        assert torch.equal(value, theirs[name])


def test_more_layers_than_there_are_and_histories_that_are_too_long_are_named(weights: Weights) -> None:
    with pytest.raises(SpecError, match=r"reranker.backbone.layers = 3: tiny-llama has 2 layers"):
        first_layers(BackboneConfig(model="x", layers=3), weights, 9)
    with pytest.raises(SpecError, match=r"reranker.length = 256: tiny-llama reads 255 items at most"):
        first_layers(BackboneConfig(model="x", layers=1), weights, 257)
    with pytest.raises(ValidationError, match="top = 3 is more than layers = 2"):
        BackboneConfig(layers=2, weights="top", top=3)


def test_a_model_that_reads_backwards_and_a_folder_without_a_model_are_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    shape = BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(shape).save_pretrained(tmp_path / "bert")
    bert = resolve(str(tmp_path / "bert"), Settings(offline=True))
    with pytest.raises(SpecError, match="reads backwards, too"):
        first_layers(BackboneConfig(model="x", layers=1), bert, 9)
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(WeightsError, match="is no language model that can be loaded"):
        first_layers(BackboneConfig(model="x", layers=1), bert, 9)


def test_weights_that_are_not_there_are_named_before_any_work(school: School, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="names no weights"):
        Course.of(config(tmp_path / "nowhere", "lora"), school, SEED)


def test_every_key_is_documented() -> None:
    part = README.split("\n### `[reranker.backbone]`")[1].split("\n### ")[0]
    assert tables(part) == [keys_of(BackboneConfig)]


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    """Two small batches in one step move the weights as one batch of both does, also where the last one is alone."""
    from recsys.networks.training import Batch, Schedule, train

    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6.0)

    class Rows:
        def __init__(self, size: int) -> None:
            self.starts, self.size = range(0, 6, size), size

        def __len__(self) -> int:
            return len(self.starts)

        def __iter__(self) -> Iterator[Batch]:
            for i in self.starts:
                yield {"x": x[i : i + self.size], "y": y[i : i + self.size]}

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

        def forward(self, batch: Batch) -> torch.Tensor:
            return ((batch["x"] @ self.weight - batch["y"]) ** 2).mean()

    def learn(size: int, accumulate: int) -> torch.Tensor:
        line, batches = Line(), Rows(size)
        schedule = Schedule(rate=0.1, accumulate=accumulate, finish=3)
        folder = tmp_path / f"{size}-{accumulate}"
        train(line, lambda _: batches, None, schedule, seed=0, device="cpu", folder=folder, title="line")
        return line.weight.detach()

    torch.testing.assert_close(learn(2, 3), learn(6, 1), atol=1e-2, rtol=1e-2)  # bf16 on some CPUs
    assert not torch.allclose(learn(2, 1), learn(6, 1), atol=1e-2)
    torch.testing.assert_close(learn(1, 6), learn(6, 1), atol=1e-2, rtol=1e-2)
    assert torch.isfinite(learn(2, 2)).all()
