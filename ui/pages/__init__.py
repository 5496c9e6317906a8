"""The pages that are no form, a folder for each: presets, pictures, layers, changes, runs. None imports another."""
