"""What families share: a model around a diffusers pipeline, UNets and their names, single-file checkpoints."""
