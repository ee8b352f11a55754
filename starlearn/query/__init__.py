"""From a pool to the items worth labelling."""
