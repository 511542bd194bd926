"""How the servers are set, and the names of what is made in them: the same for every contender."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DATABASE: Final = "bench"
PUBLICATION: Final = "bench_pub"
#: Stays at the start of the changes; each run reads a copy of it.
BASE_SLOT: Final = "bench_base"
RUN_SLOT: Final = "bench_run"

#: A plain, durable server. Only memory and the spacing of checkpoints differ from the defaults, so that no checkpoint
#: falls into a run. (How it listens, and logical decoding itself, is `towline.demo.server`'s to say.)
COMMON: Final[Mapping[str, str]] = {
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "30min",
    "max_worker_processes": "16",
    "max_logical_replication_workers": "8",
    "max_sync_workers_per_subscription": "2",
    "fsync": "on",
    "full_page_writes": "on",
    "log_min_messages": "warning",
    # Up to PostgreSQL 15 the launcher starts no worker within this time of another one: 5 s, which a subscription that
    # is enabled soon after the last would wait. This is for the built-in replication's sake.
    "wal_retrieve_retry_interval": "100ms",
    # A workload with a thousand tables takes more locks in one transaction (a dump, a first copy) than 64 a session.
    "max_locks_per_transaction": "256",
}
SOURCE: Final[Mapping[str, str]] = {"synchronous_commit": "on"}
#: The apply worker of a subscription commits asynchronously by default. So does whoever else writes to the target:
#: each contender is measured on that same footing.
TARGET: Final[Mapping[str, str]] = {"synchronous_commit": "off"}

#: Cores that processes beside the benchmark may use during a run (stolen ones included); above, it is marked.
MAX_FOREIGN: Final = 0.2
