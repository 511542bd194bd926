"""The PostgreSQL target."""
