"""The version of starlearn."""

__version__ = "0.1.0"
