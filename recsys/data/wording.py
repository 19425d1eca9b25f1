"""Readable titles, makers and descriptions for generated items, so that text models find the genre in words."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Genre:
    """The vocabulary of one genre."""

    name: str
    called: str  # how a description calls such a work
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    heroes: tuple[str, ...]
    plots: tuple[str, ...]  # after "who"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _genre(name: str, called: str, adjectives: str, nouns: str, heroes: str, plots: str) -> Genre:
    return Genre(
        name,
        called,
        _words(adjectives),
        _words(nouns),
        tuple(heroes.split(", ")),
        tuple(plots.split(", ")),
    )


GENRES = (
    _genre(
        "Drama",
        "family drama",
        "Quiet Broken Distant Unspoken Tender Borrowed Fading Faithful",
        "Harbor Daughter Season Letter Promise Kitchen Orchard Inheritance Winter House",
        "a retired teacher, an estranged sister, a young doctor, a widowed father",
        "learns to forgive the past, cares for a dying parent, must sell the family home, returns after twenty years",
    ),
    _genre(
        "Comedy",
        "light comedy",
        "Crooked Lucky Clumsy Merry Impossible Sunday Awkward Perfect",
        "Wedding Landlord Holiday Parrot Neighbour Waiter Cousin Picnic Disguise Umbrella",
        "a hapless waiter, a penniless student, a village mayor, an out-of-work actor",
        "pretends to be rich, ruins a wedding, swaps lives with a stranger, hides a goat from the landlord",
    ),
    _genre(
        "Crime",
        "crime thriller",
        "Crimson Cold Guilty Double Stolen Midnight Loaded Final",
        "Alibi Heist Verdict Informer Ransom Syndicate Getaway Witness Bullet Safe",
        "a weary detective, a getaway driver, a corrupt lawyer, a safe-cracker",
        "plans one last robbery, hunts a killer, informs on the mob, is framed for murder",
    ),
    _genre(
        "Horror",
        "horror story",
        "Hollow Cursed Bleeding Buried Screaming Forsaken Rotting Sleepless",
        "Crypt Cellar Asylum Ritual Coffin Possession Marsh Mirror Grave Scream",
        "a night nurse, a lost camper, a lonely gravedigger, a haunted child",
        "wakes something in the cellar, is hunted by the dead, cannot leave a cursed house, hears voices in the walls",
    ),
    _genre(
        "Science Fiction",
        "science fiction tale",
        "Orbital Synthetic Quantum Stellar Last Silicon Infinite Parallel",
        "Colony Android Signal Starship Paradox Horizon Probe Galaxy Machine Nebula",
        "a stranded astronaut, an android, a careless physicist, the last engineer on a space station",
        "receives a signal from another star, travels through time, repairs a dying starship, wakes on an alien planet",
    ),
    _genre(
        "Fantasy",
        "fantasy epic",
        "Enchanted Silver Forgotten Ancient Winged Golden Elven Whispering",
        "Dragon Sword Kingdom Oracle Spell Throne Griffin Wizard Amulet Prophecy",
        "a young wizard, an exiled princess, a reluctant knight, a dragon keeper",
        "seeks a magic sword, breaks an old spell, defends a kingdom from dragons, fulfils a prophecy",
    ),
    _genre(
        "Romance",
        "love story",
        "Secret Velvet Summer Endless Gentle Moonlit Blushing Sweet",
        "Kiss Heart Serenade Embrace Valentine Waltz Rose Engagement Sweetheart Longing",
        "a shy florist, a touring pianist, a lighthouse keeper, a ship's officer",
        "falls in love with a rival, writes to a stranger, meets a lost love again, chooses between two suitors",
    ),
    _genre(
        "War",
        "war film",
        "Iron Fallen Burning Brave Muddy Scattered Besieged Northern",
        "Battalion Trench Regiment Bridge Convoy Sergeant Armistice Bunker Squadron Front",
        "a frightened recruit, a field surgeon, a bomber pilot, a captured officer",
        "holds a bridge against an army, escapes a prison camp, carries orders across the front, buries old comrades",
    ),
    _genre(
        "Western",
        "western",
        "Dusty Lonesome Wild Outlaw Desert Rusty Dry Galloping",
        "Canyon Saddle Sheriff Frontier Stagecoach Rifle Ranch Prairie Gunslinger Corral",
        "an ageing sheriff, a bounty hunter, a rancher's widow, a nameless gunslinger",
        "defends a frontier town, tracks outlaws across the desert, drives cattle to market, faces a last duel",
    ),
    _genre(
        "Documentary",
        "documentary",
        "Hidden Living Deep Untold Wild Rising Vanishing Everyday",
        "Ocean Glacier Archive Factory Migration Reef Orchestra Rainforest Expedition Census",
        "a marine biologist, a choir director, a stubborn archaeologist, a steel worker",
        "films whales under the ice, digs up a lost city, records a dying language, follows birds across a continent",
    ),
)
TONES = ("quiet", "fast-paced", "bittersweet", "moody", "warm-hearted", "slow-burning", "sharp", "sprawling")
PLACES = _words(
    "Marlow Eastgate Varga Sunder Kestrel Ashford Lindholm Corvo Tamsin Redwater Halden Orsova Pellam Quarry Bellmere "
    "Dunmore Falster Grimsby Hollin Isgard Juniper Kolby Larkhill Moreno Norwood Ostrava Penrith Ravenna Selby Thorne"
)
LINKS = (" in ", " of ", " beyond ", " before ", " after ", " near ", " over ", " under ")
MAKERS = ("Lantern", "Bluebird", "Northlight", "Cobalt", "Paper Moon", "Old Mill", "Granite", "Seven Hills")
HOUSES = ("Pictures", "Films", "Studio")
NUMERALS = ("", " II", " III", " IV", " V")


PLACED = ("", *(link + place for link in LINKS for place in PLACES))


def titles(rng: np.random.Generator, genre: Codes, series: Codes, part: Codes, year: Codes) -> list[str]:
    """One distinct title an item, such as "The Cold Alibi II (1987)".

    genre  : (n_items,) main genre of each item, the same throughout a series
    series : (n_items,) which series it belongs to, 0 .. n_series - 1 (a single item is a series of one)
    part   : (n_items,) its place in the series, from 0
    year   : (n_items,)
    """
    genre_of = dict(zip(series.tolist(), genre.tolist(), strict=True))
    used: Counter[str] = Counter()
    bases: dict[int, str] = {}
    draws = rng.random((len(genre_of), 3))
    for (number, code), (a, n, the) in zip(sorted(genre_of.items()), draws.tolist(), strict=True):
        words = GENRES[code]
        name = f"{words.adjectives[int(a * len(words.adjectives))]} {words.nouns[int(n * len(words.nouns))]}"
        again = used[name]
        used[name] += 1
        # a name that was used before gets a place: "The Cold Alibi", "Cold Alibi in Marlow", ...
        repeat = f" No. {again // len(PLACED) + 1}" if again >= len(PLACED) else ""
        bases[number] = f"{'The ' if the < 0.6 else ''}{name}{PLACED[again % len(PLACED)]}{repeat}"
    rows = zip(series.tolist(), part.tolist(), year.tolist(), strict=True)
    return [f"{bases[s]}{NUMERALS[p]} ({y})" for s, p, y in rows]


def descriptions(rng: np.random.Generator, genre: Codes, second: Codes, decade: Codes) -> list[str]:
    """One sentence an item that says its genres (`second` is -1 for none) and its decade (1980, ...) in words."""
    picks = rng.random((len(genre), 3)).tolist()
    lines = []
    for g, s, d, (tone, hero, plot) in zip(genre.tolist(), second.tolist(), decade.tolist(), picks, strict=True):
        words = GENRES[g]
        tones = TONES[int(tone * len(TONES))]
        heroes = words.heroes[int(hero * len(words.heroes))]
        plots = words.plots[int(plot * len(words.plots))]
        touch = f" with a touch of {GENRES[s].name.lower()}" if s >= 0 else ""
        lines.append(f"A {tones} {words.called} from the {d}s{touch} about {heroes} who {plots}.")
    return lines


def makers(rng: np.random.Generator, genre: Codes) -> list[str]:
    """A maker for each item; every genre has a few houses of its own."""
    pick = rng.integers(0, 4, len(genre))
    name, house = (genre * 3 + pick) % len(MAKERS), (genre + pick) % len(HOUSES)
    return [f"{MAKERS[n]} {HOUSES[h]}" for n, h in zip(name.tolist(), house.tolist(), strict=True)]
