"""Procedural H&E-like tissue: the built-in model's training data, and stand-in patients for demos, tests and benchmarks.

The names are invented; no tile shows a real diagnosis. Frozen at GENERATOR_VERSION: a change of any pixel needs a new version.
"""

from synthfactory.phantom.cohort import SHIPPED_COUNTS, TileRef, cohort_tiles, write_folder, write_shards
from synthfactory.phantom.patients import CLASSES, COHORTS, GENERATOR_VERSION, Patient, make_patient
from synthfactory.phantom.tile import ATTRIBUTES, GRID_CHANNELS, Truth, render_tile

__all__ = [
    "ATTRIBUTES",
    "CLASSES",
    "COHORTS",
    "GENERATOR_VERSION",
    "GRID_CHANNELS",
    "SHIPPED_COUNTS",
    "Patient",
    "TileRef",
    "Truth",
    "cohort_tiles",
    "make_patient",
    "render_tile",
    "write_folder",
    "write_shards",
]
