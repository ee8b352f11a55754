"""Exchange with Label Studio: a batch out as tasks, annotations back as words, or both by file."""
