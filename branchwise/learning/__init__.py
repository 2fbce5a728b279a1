"""Training what judges: labels, the states of a frozen model, and a value head on them."""
