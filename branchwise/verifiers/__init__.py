"""What judges a node: likelihood, functions, mathematics, aggregation over the lineage."""
