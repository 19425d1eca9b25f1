"""Every shipped generator under the one contract suite."""

from contracts import GeneratorContract
from recsys.candidates.als import AlsConfig
from recsys.candidates.bpr import BprConfig
from recsys.candidates.content import ContentConfig
from recsys.candidates.ease import EaseConfig
from recsys.candidates.fusion import FusionConfig
from recsys.candidates.itemknn import ItemKnnConfig
from recsys.candidates.popular import PopularConfig
from recsys.candidates.sequential import SequentialConfig
from recsys.candidates.transitions import TransitionsConfig
from recsys.candidates.twotower import TwoTowerConfig


class TestPopular(GeneratorContract):
    config = PopularConfig()
    margin = 0.0


class TestTrending(GeneratorContract):
    config = PopularConfig(half_life=10.0)
    margin = -0.04  # the world has no trends: a recency window only throws counts away


class TestAls(GeneratorContract):
    config = AlsConfig()
    margin = 0.15


class TestBpr(GeneratorContract):
    config = BprConfig(factors=16, learning_rate=0.05, iterations=30)
    margin = 0.15


class TestEase(GeneratorContract):
    config = EaseConfig()
    margin = 0.25


class TestItemKnn(GeneratorContract):
    config = ItemKnnConfig()
    margin = 0.25


class TestTransitions(GeneratorContract):
    config = TransitionsConfig()
    margin = 0.24


class TestContent(GeneratorContract):
    config = ContentConfig()
    margin = 0.08


class TestSequential(GeneratorContract):
    config = SequentialConfig(dim=32, layers=1, epochs=6, batch=16, rate=5e-3, warmup=10)
    margin = 0.1


class TestTwoTower(GeneratorContract):
    config = TwoTowerConfig(dim=32, hidden=32, length=20, batch=256, epochs=4, events=4000, rate=3e-3)
    margin = 0.15


class TestFusion(GeneratorContract):
    config = FusionConfig()
    margin = 0.25
