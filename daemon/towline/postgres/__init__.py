"""What both ends share of PostgreSQL: sessions, errors, and the catalog."""
