"""recsys: an LLM-powered recommender from interaction logs and a catalog with text.

Importing this package loads nothing heavy. It sets three environment defaults because they only work before the
first numpy or torch import, and only where the user has not chosen: on shared cores, spinning OpenMP threads make
two threads five times slower than one, and more threads than usable cores are slower still.
"""

import os as _os


def usable_cores() -> int:
    """Cores that this process may run on (its CPU affinity); all of the machine's where the system cannot say."""
    return len(_os.sched_getaffinity(0)) if hasattr(_os, "sched_getaffinity") else _os.cpu_count() or 1


_os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"
