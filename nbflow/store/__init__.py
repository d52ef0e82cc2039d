"""Where runs are kept: a journal in front of DuckDB."""
