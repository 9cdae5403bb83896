"""The sections of a recipe: typed settings with their defaults and limits, one file per topic."""
