"""The demo: two PostgreSQL servers of its own, a small ERP under load, the daemon, a live screen, and a proof.

Nothing else of Towline may import this package, but for the command line. Tests use its servers.
"""
