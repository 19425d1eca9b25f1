"""What a bundle's profiles are worth: are they true, are they useful, do they stay fresh, do edits steer."""

from recsys.audit.page import write_audit
from recsys.audit.run import Audit, audit

__all__ = ["Audit", "audit", "write_audit"]
