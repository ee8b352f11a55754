"""A labelling effort over days: labels, rounds and adapters in a folder that survives anything."""
