"""Real data in: the public dataset format, its checks, splits, vocabularies, and a world with known tastes."""
