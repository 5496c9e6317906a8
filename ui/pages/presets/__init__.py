"""presets_page: the tree of all presets, the details of the chosen one, and the keeper of their files."""
