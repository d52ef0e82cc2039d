"""What nbflow costs, as ratios to what the disk and DuckDB cost by themselves. Start with `README.md`."""
