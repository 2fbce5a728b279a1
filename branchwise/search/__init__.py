"""Controllers and picks: one algorithm, or one pick, per file."""
