"""openmimo: an open, complete implementation of the MiMo-7B recipe."""

__version__ = "0.1.0"
