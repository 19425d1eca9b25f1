"""Who a user is, in words: evidence from the log, a profile written from it, and reasons that rest on it."""

from recsys.profiles.reasons import Reasons
from recsys.profiles.source import EvidenceProfiles, ProfilesConfig
from recsys.profiles.summarize import summarize
from recsys.profiles.summary import SummaryReport

__all__ = ["EvidenceProfiles", "ProfilesConfig", "Reasons", "SummaryReport", "summarize"]
