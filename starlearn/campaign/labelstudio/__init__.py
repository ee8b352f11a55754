"""Exchange with Label Studio: export of tasks and import of annotations, by server or by file."""
