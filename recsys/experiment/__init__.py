"""Experiments: planned, assigned, checked and read. Usable without the rest of the package.

from pathlib import Path
import polars as pl
from recsys.experiment import Experiment, analyze

readout = analyze(Experiment.read(Path("exp.toml")), pl.scan_parquet("exposures.parquet"))
print(readout.frame)
"""

from recsys.experiment.analysis import analyze
from recsys.experiment.design import Experiment
from recsys.experiment.metrics import Mean, Metric, Proportion, Quantile, Ratio
from recsys.experiment.readout import Readout

__all__ = ["Experiment", "Mean", "Metric", "Proportion", "Quantile", "Ratio", "Readout", "analyze"]
