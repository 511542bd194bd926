"""Towline: replicates logistics records from a live database into another as they change."""

__version__ = "0.1.0"
