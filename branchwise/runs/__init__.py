"""Many tasks, one experiment: spec, data, store, runner, report."""
