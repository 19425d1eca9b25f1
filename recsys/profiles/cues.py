"""Words of liking and refusing, and text in the plain form in which they are looked up."""

import re
import unicodedata

# All of these as `_normal` writes them: lower case, no apostrophes, hyphens as spaces.
_LIKED_AFTER_ALL = (
    r"cant get enough(?: of)?|(?:not|never)(?: get| have)? enough|never tire of"
    r"|(?:never|not)(?: get| getting)? (?:tired|sick|bored) (?:of|by|with)"
    r"|who (?:doesnt|wouldnt) (?:love|like|enjoy|want)"
    r"|(?:not|dont) (?:only|just|merely)|never miss|(?:not|dont) (?:want to |wanna )?miss"
    r"|nothing (?:beats|better than|like a good)|why not|at least|too few"
    r"|(?:cant|couldnt) live without|(?:wont|wouldnt|never) say no to|not (?:opposed|averse) to"
    r"|(?:dont|never) (?:forget|skip|hide|drop|remove|stop|avoid|ignore)"
)
_NEITHER = (
    r"(?:dont|doesnt|not) (?:mind|hate|dislike|bother|bothered)|no matter|(?:nothing|not) against"
    r"|(?:dont|doesnt) have (?:a|any) (?:problem|issue)s? with|(?:no|any) (?:problem|issue)s? with"
)
_AGAINST = (
    r"no|not|non|none|nothing|nor|neither|never|nope|nah|meh|yuck|ugh|without|less|fewer|least|minus|anti|hat(?:e|es|ed|ing)"
    r"|dislik\w*|detest\w*|loath\w*|despis\w*|avoid\w*|skip\w*|hid(?:e|ing)|drop|remov\w*|forget|ignore|stop|ban|block"
    r"|exclud\w*|except|sick of|tired of|bored (?:of|by|with)|fed up|over with|enough|too (?:much|many)"
    r"|(?:do|does|did|wo|would|is|are|was|ca|could|should|have|has)nt|cannot|no longer|used to|instead of|rather than"
    r"|hardly|rarely|seldom|scared of|afraid of|allergic to|(?:done|through|had it) with|im over|quit"
    r"|cut (?:down|back|out)|get rid of|(?:take|leave|throw) out|apart from|away from|break from"
    r"|other than|why (?:do|are|so)"
    r"|keep (?:showing|recommending|suggesting|getting)"
)
_TOWARDS = (
    r"more|lov\w*|lik(?:e|es|ed|ing)|enjoy\w*|ador\w*|prefer\w*|want\w*|need|crav\w*|into|fans? of|sucker for|fond of"
    r"|keen on|favou?rites?|interested in|looking for|show|give|recommend\w*|suggest\w*|only|especially|mostly"
    r"|crazy about|mad about|mood for|appreciate|miss|yes|watch\w*|read\w*|play\w*"
)
CUE = re.compile(
    rf"\b(?:(?P<liked>{_LIKED_AFTER_ALL})|(?P<neither>{_NEITHER})|(?P<no>{_AGAINST})|(?P<yes>{_TOWARDS}))\b"
)
_COPULA = (
    r"^(?:(?:movies|films|titles|stuff|cinema|shows|books|games|would|be|is|are|was|were|just|really|so|such|a|always"
    r"|get|gets) )*"
)
_AFTER_YES = re.compile(
    _COPULA + r"(?:not (?:bad|boring)|never (?:bores?|disappoints?|gets? old)|great|good|fine|nice|fun|best|the best"
    r"|awesome|amazing|wonderful|lovely|welcome|lovers?|fans?|ok|okay|perfect|rocks?|rules?|yes"
    r"|my (?:thing|jam|favou?rites?)"
    r"|more(?: please| often)?$)"
)
_AFTER_NO = re.compile(
    _COPULA + r"(?:not|isnt|arent|wasnt|never|no|nope|less|too|free$|out$|bor(?:e|es|ing)|sucks?|awful|terrible|bad"
    r"|dull|slow|overrated|annoy\w*|stupid|scares?|low|lower|poorly|gives? me (?:nightmares|the creeps)"
    r"|(?:can|must|should|has to|have to) (?:go|stop|disappear))\b"
)
_WORDS = re.compile(r"\w+")
_SMALL = frozenset(
    _WORDS.findall(
        "a about all also an any at both do either else even for from genre genres i im in it its item items kind kinds"
        " lot lots me movie movies film films much now of oh on one ones other please really series show shows so some"
        " sort sorts stuff that the them then these thing things this those thank thanks title titles to too very you"
    )
)
_WHO = frozenset({"i", "im", "ive", "we", "you", "he", "she", "they"})
# Words that carry a sentence and are nobody's name for a value while they stand alone.
FUNCTION = _SMALL | frozenset(
    _WORDS.findall(
        "and but or no not more less nothing never love like likes hate want need only yes stop skip avoid is are was"
        " my your be been can will would have has had if as by we he she they who what when where why how with out up"
        " us new good bad best well"
    )
)
_WORD = re.compile(r"[^\W_]+|[,.;!?/\n+]")
_DASH = re.compile(r"\s[-–—]+\s|—")
_SMILES = {"👎": "no", "🚫": "no", "❌": "no", "🤮": "no", "👍": "yes", "❤": "yes", "♥": "yes", "😍": "yes"}


def cue_of(words: str) -> str | None:
    """What the words before a name ask for: "more", "less", "neither", None. "Don't want" and "no more" refuse."""
    state = None
    for found in CUE.finditer(words):
        if found["liked"]:
            state = "more"
        elif found["neither"]:
            state = "neither"
        elif found["no"]:
            state = "less"
        elif state is None:
            state = "more"
    return state


def cue_behind(words: str) -> str | None:
    """What the words behind a name say of it."""
    if _AFTER_YES.search(words):
        return "more"
    return "less" if _AFTER_NO.search(words) else None


def is_small(words: str) -> bool:
    """Whether there are only words that say nothing by themselves, or none."""
    return _SMALL.issuperset(words.split())


def is_plain(words: str) -> bool:
    """Whether the words before a name do no more than describe it: there is nobody who does something unknown."""
    return is_small(words) or _WHO.isdisjoint(words.split())


def _normal(text: str) -> str:
    """In lower case, without apostrophes and hyphens, signs of liking in words."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    for sign, word in _SMILES.items():
        plain = plain.replace(sign, f" {word} ")
    plain = _DASH.sub(" , ", re.sub(r"['’‘`´]", "", plain)).replace("&", " and ")
    return re.sub(r"(?<=\w)[-‐‑–](?=\w)", " ", plain)


def tokens_of(text: str) -> list[str]:
    """Words and the signs that part sentences, in order, all other signs left out."""
    return _WORD.findall(_normal(text))
