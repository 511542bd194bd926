"""Routes: what a pipeline does with a row, as SQL that is parsed, checked and explained. No I/O."""
