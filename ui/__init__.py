"""The window. It shares three file formats with the trainer (presets, the schema, events) and imports nothing of it.

Rooms, each imports only those before it: core (no widgets), widgets, form, pages, frame (the window around the pages);
app starts it.
"""
