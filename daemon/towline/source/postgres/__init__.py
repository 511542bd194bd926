"""PostgreSQL as a source: its replication stream with two output plugins, and its tables.

``stream`` holds the connection and the reader thread; ``walsender`` the replication protocol under it. The decoders
(``pgoutput`` and ``tuples``, ``wal2json``) are bytes in, changes out: no socket, driver, logger or clock. ``gather``
makes pieces of what they decode; ``routed`` knows which relations are wanted.
"""
