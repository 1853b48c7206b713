"""From a recipe to the graph of its stages."""

from fusion.pipeline.build import build as build
from fusion.pipeline.build import unpinned as unpinned
from fusion.pipeline.graph import Graph as Graph
