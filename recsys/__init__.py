"""recsys: an LLM-powered recommender from interaction logs and a catalog with text.

Importing this package loads nothing heavy. It sets two environment defaults because they only work before the
first numpy or torch import, and only where the user has not chosen: on shared cores, spinning OpenMP threads make
two threads five times slower than one.
"""

import os as _os

_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"
