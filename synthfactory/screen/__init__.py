"""Keep-or-drop verdicts on drawn tiles, with reasons and scores."""

from synthfactory.screen.nearest import Nearest
from synthfactory.screen.verdict import Verdict, screen_tiles, sharpness, tissue_fraction

__all__ = ["Nearest", "Verdict", "screen_tiles", "sharpness", "tissue_fraction"]
