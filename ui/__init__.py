"""The window. It shares three file formats with the trainer (presets, the schema, events) and imports nothing of it."""
