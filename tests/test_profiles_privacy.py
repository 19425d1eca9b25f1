"""What profiles never say of somebody, and contact details that users type."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys.profiles.privacy import Sensitive, scrub, scrub_column

FOUND = {
    "write to bob.smith+films@mail.example.co.uk!": "write to [e-mail]!",
    "BOB@EXAMPLE.COM,ann@b.de": "[e-mail],[e-mail]",
    "jürgen@müller.example": "[e-mail]",
    "(me@host.org)": "([e-mail])",
    "+44 20 7946 0958": "[phone]",
    "ring +1 (555) 123-4567.": "ring [phone].",
    "+4915112345678 or +33 1 23 45 67 89": "[phone] or [phone]",
    "0049 89 1234567": "[phone]",
    "(555) 123-4567": "[phone]",
    "555-123-4567, thanks": "[phone], thanks",
    "555.123.4567": "[phone]",
    "1-800-555-0199": "[phone]",
    "030 1234567": "[phone]",
    "0171-1234567": "[phone]",
    "(089) 1234567": "[phone]",
    "089/123456": "[phone]",
    "01 23 45 67 89": "[phone]",
    "01.23.45.67.89": "[phone]",
    "020 7946 0958": "[phone]",
    "07946095812": "[phone]",
    "call me at 612 345 678 tonight": "call me at [phone] tonight",
    "Tel.: 5551234": "Tel.: [phone]",
    "WhatsApp 612345678": "WhatsApp [phone]",
    "4111 1111 1111 1111": "[card]",
    "4111-1111-1111-1111 exp": "[card] exp",
    "5500005555555559": "[card]",
    "amex 378282246310005": "amex [card]",
    "DE89 3704 0044 0532 0130 00 and thanks": "[iban] and thanks",
    "DE89370400440532013000": "[iban]",
    "gb82 west 1234 5698 7654 32": "[iban]",
    "NL91-ABNA-0417-1643-00": "[iban]",
    "FR14 2004 1010 0505 0001 3M02 606.": "[iban].",
    "from 192.168.1.10 today": "from [ip] today",
    "2001:db8::1": "[ip]",
    "fe80:0:0:0:200:f8ff:fe21:67cf,": "[ip],",
}
LEFT = [
    "1984",
    "2001: A Space Odyssey",
    "price 10 to 20",
    "Se7en",
    "Blade Runner 2049 and 12 Angry Men",
    "The 39 Steps (1935), 8½ (1963), 300",
    "from 1914-1918 and 1939 - 1945",
    "1990s, 2000s; 60s 70s 80s 90s",
    "2001-09-11 or 11/09/2001 or 11.9.2001",
    "01.02.2003 10:20",
    "01-02-2003",
    "$1,299.99 and 1.234.567,89 EUR",
    "3.14159265358979 and 0.123456789",
    "978-0-306-40615-7",
    "ISBN 0-306-40615-2",
    "ISBN-13: 9780306406157",
    "4111 1111 1111 1112",
    "DE88 3704 0044 0532 0130 00",
    "1616000479",
    "1 000 000 000",
    "at 10:20:30, or 20:15",
    "version 1.2.3",
    "999.1.1.1",
    "std::vector<int>",
    "007 James Bond",
    "tt0114709 and nm0000123",
    "24-7-365",
    "call it 2001",
    "phone booth 3000",
    "U-571, Apollo 13, K-19",
    "@handle and me @ home",
    "less than 100 minutes, 16:9, 4K",
    "",
]
# Pieces that are near to contacts, so that hypothesis joins them into more than noise.
PIECES = st.sampled_from(
    ["+", "0", "00", "49", "1", " ", "-", ".", ":", "/", "(", ")", "@", "a", "GB82", "WEST", "tel ", "ISBN"]
)
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES | st.from_regex(r"[0-9]{1,5}"), max_size=25).map("".join))


def test_there_are_enough_cases() -> None:
    assert len(FOUND) + len(LEFT) >= 60


@pytest.mark.parametrize("text", FOUND)
def test_contact_details_are_replaced(text: str) -> None:
    assert scrub(text) == FOUND[text]


@pytest.mark.parametrize("text", LEFT)
def test_what_is_no_contact_stays(text: str) -> None:
    assert scrub(text) == text


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_scrubbing_twice_is_scrubbing_once(text: str) -> None:
    once = scrub(text)
    assert scrub(once) == once


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_a_column_is_scrubbed_as_its_texts_are(texts: list[str]) -> None:
    valid = [text.encode("utf-8", "ignore").decode() for text in texts]
    series = pl.Series("said", [*valid, None, *FOUND, *LEFT], dtype=pl.String)
    cleaned = scrub_column(series)
    assert cleaned.to_list() == [*map(scrub, valid), None, *FOUND.values(), *LEFT]
    assert cleaned.name == "said"
    assert series[len(valid) + 1] == next(iter(FOUND)), "the given column stays as it was"


def test_a_long_text_is_scrubbed_in_linear_time() -> None:
    for text in ("0 " * 50_000, "a@" * 50_000, "a." * 50_000 + "@", "1.1." * 25_000, "ab12" * 25_000, ":" * 100_000):
        assert len(scrub(text)) <= len(text)


HIDDEN = [
    *("Gay & Lesbian", "Christian", "Islam", "Cancer", "Depression", "LGBTQ+", "Political", "Homosexuality", "Jews"),
    *(
        "Trade Unions",
        "labour-union",
        "Self-Harm",
        "self harm",
        "left-wing",
        "African American",
        "Ex-Convict",
        "felony",
    ),
    *(
        "Religión",
        "POLÍTICA",
        "jüdische Geschichte",
        "Gewerkschaften",
        "Krebs",
        "maladies",
        "santé: grossesse",
        "ethnic",
    ),
    *("Ｃａｎｃｅｒ", "can\u00adcer", "Living with cancer", "religious_studies", "erotica", "HIV", "Buddhism"),
]
SHOWN = [
    *("War", "Crime", "Horror", "Drama", "Documentary", "Sussex", "Essex", "class", "Classic", "Adult", "Black Comedy"),
    *(
        "Reunion",
        "Western",
        "Criminal Minds",
        "Churchill",
        "Judas",
        "Polite Society",
        "Socialising",
        "Addictive",
        "Standard",
    ),
    *(
        "Christian Bale",
        "Hans Christian Andersen",
        "Health & Beauty",
        "Great Depression",
        "Union Pacific",
        "Race",
        "",
        "Art",
    ),
    *("Family", "History", "Marvin Gaye", "The 1990s", "Science Fiction", "Sextet", "Aid", "Massachusetts", "Convex"),
]


@pytest.mark.parametrize("value", HIDDEN)
def test_sensitive_values_are_hidden(value: str) -> None:
    assert Sensitive().hides("genres", value)
    assert Sensitive().fault(f"You keep coming back to {value} more than most.") is not None


@pytest.mark.parametrize("value", SHOWN)
def test_other_values_are_shown(value: str) -> None:
    assert not Sensitive().hides("genres", value)
    assert Sensitive().fault(f"You keep coming back to {value} more than most.") is None


def test_every_packaged_word_hides_itself_and_every_allowed_one_does_not() -> None:
    lists = Sensitive()._lists
    assert {"health", "religion", "politics", "sexuality", "ethnicity", "criminal record", "trade union"} < set(lists)
    for section, entries in lists.items():
        for entry in entries:
            word = entry.replace("*", "")
            if section == "fine":
                assert Sensitive().fault(word) is None, word
            elif section == "attributes":
                assert Sensitive().hides(word, "yes"), word
            else:
                assert str(Sensitive().fault(word)).endswith(word), word


def test_an_attribute_may_be_sensitive_by_its_name() -> None:
    for name in (
        "religion",
        "userReligion",
        "author_gender",
        "Sexual Orientation",
        "healthStatus",
        "race",
        "ethnicity",
    ):
        assert Sensitive().hides(name, "whatever"), name
    for name in ("genres", "brand", "prodCategory", "decade", "maker", "section", "trace"):
        assert not Sensitive().hides(name, "whatever"), name


def test_a_fault_says_what_and_of_which_kind() -> None:
    assert Sensitive().fault("You like films on trade\n unions, and cancer.") == "trade union: trade unions"
    assert Sensitive().fault("You like comedies.") is None


def test_the_mask_is_the_rule_for_every_row() -> None:
    frame = pl.DataFrame(
        {
            "attribute": ["genres", "religion", "genres", "genres", None, "religion", None],
            "value": ["War", "none", "Islam", None, "Islam", None, "War"],
        }
    )
    assert Sensitive().hidden(frame).to_list() == [False, True, True, False, True, True, False]
    titles = pl.Series(["Living with cancer", "Heat", None])
    assert Sensitive().faulty(titles).to_list() == [True, False, False]
    assert Sensitive().hidden(frame.clear()).to_list() == []


def test_the_lists_can_be_extended_and_replaced() -> None:
    own = Sensitive(attributes=("mood",), words=("whal*", "fan fiction"), fine=("gay & lesbian",))
    assert own.hides("mood", "dark")
    assert own.fault("You like Whaling") == "own list: whaling"
    assert own.hides("genres", "Fan-fiction")
    assert not own.hides("genres", "Gay & Lesbian")
    assert own.hides("genres", "Islam")
    alone = Sensitive(packaged=False, words=("whal*",))
    assert not alone.hides("religion", "Islam")
    assert alone.hides("genres", "whale")
    nothing = Sensitive(packaged=False)
    assert not nothing.hides("religion", "Islam")
    assert nothing.fault("anything at all") is None


def test_words_that_stood_apart_make_no_pair_once_an_allowed_one_is_out() -> None:
    own = Sensitive(packaged=False, words=("trade union",), fine=("fair",))
    assert own.fault("trade fair union") is None


def test_the_config_is_strict() -> None:
    with pytest.raises(ValidationError):
        Sensitive.model_validate({"word": ["x"]})
