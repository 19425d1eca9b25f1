"""Counts in messages: "1 violation", "2,000 violations"."""


def counted(n: int, one: str, many: str | None = None) -> str:
    """The number with the word that fits it; `many` is `one` with an "s" where it is not given."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
