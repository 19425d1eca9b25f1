"""Experiments: planned, assigned, checked and read. Usable without the rest of the package.

from pathlib import Path
import polars as pl
from recsys.experiment import Experiment, analyze

readout = analyze(Experiment.read(Path("exp.toml")), pl.scan_parquet("exposures.parquet"))
print(readout.frame)
"""

from recsys.experiment.analysis import analyze
from recsys.experiment.design import Experiment, Metric
from recsys.experiment.metrics import Mean, Proportion, Ratio, Retention
from recsys.experiment.pooled import Coverage, Quantile
from recsys.experiment.readout import Readout
from recsys.experiment.slates import ClickGain, ClickRate, Diversity

__all__ = [
    "ClickGain",
    "ClickRate",
    "Coverage",
    "Diversity",
    "Experiment",
    "Mean",
    "Metric",
    "Proportion",
    "Quantile",
    "Ratio",
    "Readout",
    "Retention",
    "analyze",
]
