"""Towline: replicates logistics records from a live database into another as they change."""

import os

# numpy's linear algebra, which is not used here, would start a thread for every core, with buffers for each.
os.putenv("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
