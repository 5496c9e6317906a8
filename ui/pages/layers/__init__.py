"""layers_page: the layers that take an adapter, as a block_tree."""
