"""What a profile must not say: what is sensitive of a person, and contact details in what users type.

A profile is made of inferences, and some are nobody's business however well the history supports them: health,
religion, politics, sexuality, ethnicity, crimes, trade unions. The words are data (`prompts/sensitive.txt`).

A title is a fact about an item and no inference. But a profile that names "Living with cancer" tells a reader more than
that a book was read, so a title that hits is not named in profiles either; it stays in the history, in candidates and
in what ranks them, and on the slate it is an item like any other.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import resources

import polars as pl
from pydantic import BaseModel, ConfigDict

ATTRIBUTES, FINE = "attributes", "fine"


class Sensitive(BaseModel):
    """Which attributes and words never enter a profile.

    packaged   : whether the packaged list counts
    attributes : more attributes (columns of the catalog) of which nothing is said
    words      : more words, as in the packaged file: "*" stands for any ending
    fine       : words and names that are allowed although the list has them
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    packaged: bool = True
    attributes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    fine: tuple[str, ...] = ()

    def hides(self, attribute: str, value: str) -> bool:
        """Whether nothing may be said of this value: because of the attribute's name, or of its own."""
        return self._hides_attribute(attribute) or self.fault(value) is not None

    def hidden(self, frame: pl.DataFrame) -> pl.Series:
        """`hides` for each row of a frame with `attribute` and `value` (strings; a null hides nothing)."""
        attribute = _each(frame["attribute"], self._hides_attribute)
        return (attribute | self.faulty(frame["value"])).alias("hidden")

    def fault(self, text: str) -> str | None:
        """The first sensitive word of a text, behind what it is about ("health: cancer"); None where there is none."""
        clean = _plain(text)
        if self._fine is not None:
            clean = self._fine.sub("0", clean)  # a word: what stood apart makes no phrase now
        if self._words is None or not (found := self._words.search(clean)):
            return None
        return f"{self._sections[int(str(found.lastgroup)[1:])]}: {' '.join(found[0].split())}"

    def faulty(self, texts: pl.Series) -> pl.Series:
        """Whether each text has a `fault` (Boolean; a null has none). For titles: those that are not to be named."""
        return _each(texts, lambda text: self.fault(text) is not None)

    def _hides_attribute(self, attribute: str) -> bool:
        return self.fault(attribute) is not None or bool(
            self._attributes and self._attributes.search(_plain(attribute))
        )

    @cached_property
    def _lists(self) -> dict[str, list[str]]:
        found = {"own list": list(self.words), ATTRIBUTES: list(self.attributes), FINE: list(self.fine)}
        for section, entries in (_read() if self.packaged else {}).items():
            found[section] = [*found.get(section, []), *entries]
        return found

    @cached_property
    def _sections(self) -> list[str]:
        return [section for section, entries in self._lists.items() if entries and section not in (ATTRIBUTES, FINE)]

    @cached_property
    def _words(self) -> re.Pattern[str] | None:
        parts = [f"(?P<s{i}>{_any(self._lists[section])})" for i, section in enumerate(self._sections)]
        return _whole("|".join(parts))

    @cached_property
    def _attributes(self) -> re.Pattern[str] | None:
        return _whole(_any(self._lists[ATTRIBUTES]))

    @cached_property
    def _fine(self) -> re.Pattern[str] | None:
        return _whole(_any(self._lists[FINE]))


def _read() -> dict[str, list[str]]:
    text = (resources.files("recsys.profiles") / "prompts" / "sensitive.txt").read_text("utf-8")
    sections: dict[str, list[str]] = {}
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("["):
            entries = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            entries.append(line)
    return sections


def _plain(text: str) -> str:
    """Words in lower case without accents; "prodReligion_tag" becomes three."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).replace("_", " ")
    parts = unicodedata.normalize("NFKD", spaced.casefold())
    return "".join(c for c in parts if not unicodedata.combining(c) and unicodedata.category(c) != "Cf")


def _any(entries: Sequence[str]) -> str:
    """An alternation of entries, the longest first, so that a message names the whole phrase."""
    return "|".join(_entry(_plain(e)) for e in sorted(entries, key=lambda e: (-len(e), e)) if e.strip(" *"))


def _entry(entry: str) -> str:
    """Words may be apart by anything that is no letter: "self-harm". Without "*", a plural is the only ending."""
    words = re.findall(r"\w+", entry)
    return r"[\W_]+".join(map(re.escape, words)) + (r"\w*" if entry.rstrip().endswith("*") else "s?")


def _whole(alternation: str) -> re.Pattern[str] | None:
    return re.compile(rf"(?<!\w)(?:{alternation})(?!\w)") if alternation else None


def _each(texts: pl.Series, judge: Callable[[str], bool]) -> pl.Series:
    """The judgement of each text, made once of equal ones."""
    unique = texts.drop_nulls().unique()
    yes = [text for text in unique if judge(text)]
    return texts.is_in(pl.Series(yes, dtype=pl.String).implode()).fill_null(False)


_GAP = r"[ \u00a0.\-/]"
_YEAR = r"(?:1[5-9]|2[01])\d\d"
_CONTACT = re.compile(
    rf"""
      (?P<email>(?<![\w.+%-])[\w.+%-]{{1,64}}@(?:[\w-]{{1,63}}\.){{1,8}}[\w-]{{2,24}})
    | (?P<iban>(?<![^\W_])[A-Za-z]{{2}}\d{{2}}(?:[ \u00a0-]?[A-Za-z0-9]){{11,30}}(?!\w))
    | (?P<ip>(?<![\w.])\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?![\w]|\.\d)
        |(?<![\w:.])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}[0-9A-Fa-f]{{0,4}}(?![\w:]))
    | (?P<card>(?<![\w.])[2-6](?:[ \u00a0-]?\d){{12,18}}(?!\w))
    | (?P<date>(?<!\d)(?:\d{{1,2}}[./-]\d{{1,2}}[./-]{_YEAR}|{_YEAR}-\d\d-\d\d)(?!{_GAP}?\d{{2}}{_GAP}?\d{{2}}))
    | (?P<isbn>\bISBN(?:-1[03])?:?\s{{0,3}}[\dXx-]{{9,17}})
    | (?P<said>\b(?:tel|phone|telephone|telefon|t[ée]l[ée]phone|call|mobile|cell|handy|whatsapp|fax|sms)\b
        (?:\s+(?:me|us|at|on|is|number|no|nr)\b)*[.:\s]{{0,4}})(?P<told>\(?\d(?:[ \u00a0.()/-]{{0,3}}\d){{5,14}}(?!\w))
    | (?P<phone>(?<![\w.+])(?:\+|00[ ]?(?=[1-9]))\(?\d(?:[ \u00a0.()/-]{{0,3}}\d){{6,14}}(?!\w)
        |(?<![\w.,+])(?<!\d[ ])\(?0[1-9]\d{{0,3}}\)?(?:[ \u00a0./-]{{0,2}}\d){{5,9}}(?!\w)
        |(?<![\w.,+-])(?:1[ .-])?(?:\([2-9]\d\d\)[ ]?|[2-9]\d\d[ .-])\d{{3}}[ .-]\d{{4}}(?![\w-]|[.,]\d))
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Every contact has one of these, so that a text without is left alone unread.
_MAY = r"@|(?:\d\D{0,4}){6}|\d\.\d{1,3}\.|:[0-9A-Fa-f]{0,4}:|[A-Za-z]{2}\d{2}"
_LOCAL_DIGITS = 9  # fewest digits of a number without a country, so that a date or a price is none


def scrub(text: str) -> str:
    """The text with "[e-mail]", "[phone]", "[card]", "[iban]" and "[ip]" in the place of those that it holds.

    Cards are checked by Luhn's digit, IBANs by theirs (ISO 7064), addresses of the Internet by parsing. Telephone
    numbers count with a country code, a leading 0, the American grouping, or a word such as "call" before them; a bare
    row of digits is none, nor are years, prices and dates. Scrubbing twice changes nothing more.
    """
    while (clean := _CONTACT.sub(_label, text)) != text:  # each time with fewer digits or @, so it ends
        text = clean
    return text


def scrub_column(texts: pl.Series) -> pl.Series:
    """`scrub` of each text (nulls stay); only those that may hold something are read one by one."""
    may = texts.str.contains(_MAY).fill_null(False)
    rows = may.arg_true()
    if not len(rows):
        return texts
    cleaned = pl.Series([scrub(text) for text in texts.gather(rows)], dtype=pl.String)
    return texts.clone().scatter(rows, cleaned)


def _label(found: re.Match[str]) -> str:
    text, kind = found[0], str(found.lastgroup)
    if kind == "email":
        return "[e-mail]"
    if kind == "told":
        return f"{found['said']}[phone]"
    if kind == "iban":
        return _iban(text)
    if kind == "ip":
        return "[ip]" if _is_ip(text) else text
    if kind == "card":
        return "[card]" if _luhn(text) else text
    if kind == "phone":
        local = not text.startswith(("+", "00")) and text.lstrip("(").startswith("0")
        few = sum(c.isdecimal() for c in text) < _LOCAL_DIGITS
        return text if local and few else "[phone]"
    return text


def _iban(text: str) -> str:
    """The longest beginning that is an account is replaced; words may stand right behind it."""
    for end in range(len(text), 14, -1):
        code = re.sub(r"[ \u00a0-]", "", text[:end])
        if 15 <= len(code) <= 34 and text[end - 1].isalnum() and not text[end : end + 1].isalnum():
            number = "".join(str(int(c, 36)) for c in code[4:] + code[:4])
            if int(number) % 97 == 1:
                return f"[iban]{text[end:]}"
    return text


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdecimal()]
    doubled = [d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_ip(text: str) -> bool:
    if not any(c.isdecimal() for c in text):
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
