"""The benchmark: Towline, PostgreSQL's own logical replication and others, measured side by side (`make bench`).

    python -m bench --help

All contenders read the same log of the same servers, one after the other, round by round; a run counts only when the
target's contents are those of the source. docs/PERFORMANCE.md holds what came out, and what it means.
"""
