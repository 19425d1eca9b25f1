"""One user with known evidence beside a small catalog, for the tests of what may be said about a user."""

import polars as pl

from recsys.profiles.evidence import Evidence, Item, Trait
from recsys.profiles.faithful import Checker
from recsys.profiles.phrases import Phrases, read_prompt
from recsys.profiles.population import Known, Population
from recsys.tables import Catalog, InteractionLog

GENRES = ["Horror", "Comedy", "Western", "Sci-Fi", "Drama", "Musical"]
TITLES = ["Alien (1979)", "Evita (1996)", "Heat (1995)", "The Big Sleep (1946)", "Matrix, The (1999)", "Jaws 2 (1978)"]
PHRASES = Phrases.read()


def make_known(titles: list[str] = TITLES) -> Known:
    """24 items, each title, genre and decade four times."""
    n = 24
    catalog = Catalog(
        pl.DataFrame(
            {
                "item_id": list(range(n)),
                "title": [titles[i % len(titles)] for i in range(n)],
                "text": [""] * n,
                "genres": [[GENRES[i % 6]] for i in range(n)],
                "year": [1940 + 10 * (i % 6) for i in range(n)],
            }
        )
    )
    log = InteractionLog.of(
        pl.DataFrame({"user_id": [1] * n, "item_id": list(range(n)), "event": "x", "weight": 1.0, "ts": list(range(n))})
    )
    return Known(Population.fit(log, catalog, like_at=4.0, dislike_at=2.0), catalog)


def make_checker(phrases: Phrases = PHRASES, known: Known | None = None) -> Checker:
    """A checker that knows the catalog, and the instructions of free writing."""
    return Checker.of(known or make_known(), phrases, read_prompt("write")[1])


def trait(value: str, attribute: str = "genres", kind: str = "value", lift: float = 2.4, n: int = 12) -> Trait:
    return Trait(attribute, value, kind, lift, n)


EVIDENCE = Evidence(
    events=53,
    liked=40,
    disliked=6,
    rated=True,
    tastes=(trait("Horror"), trait("Sci-Fi")),
    eras=(trait("1970s", "year", "era"),),
    dislikes=(trait("Western"),),
    anchors=(Item(0, "Alien (1979)"), Item(4, "Matrix, The (1999)")),
    latest=(Item(5, "Jaws 2 (1978)"),),
)
# horror is the strongest and far above others, sci-fi mildly above, drama merely common, comedy on the rise
RICH = Evidence(
    events=53,
    liked=40,
    disliked=6,
    rated=True,
    tastes=(trait("Horror", lift=3.2, n=20), trait("Sci-Fi", lift=1.4, n=8)),
    eras=(trait("1970s", "year", "era", lift=1.6, n=15),),
    common=(trait("Horror", lift=3.2, n=20), trait("Drama", lift=0.9, n=10)),
    recent=(trait("Comedy", lift=2.1, n=5),),
    dislikes=(trait("Western", lift=1.8, n=4),),
    anchors=(Item(0, "Alien (1979)"), Item(4, "Matrix, The (1999)")),
    latest=(Item(5, "Jaws 2 (1978)"), Item(0, "Alien (1979)")),
)
