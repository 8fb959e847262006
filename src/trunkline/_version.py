"""The version of the package: the one place that says it (the build reads this file)."""

__version__ = "0.1.0"
