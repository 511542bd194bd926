"""SQL text for checked routes, per target engine. Pure: no connection, no daemon."""
