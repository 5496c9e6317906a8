"""Adapters merged into a base on disk (docs/merging.md).

    command             scripts/merge.py
    sources             the changes of an adapter file, layer by layer
    into_base           writes the base with the changes
    checkpoint stream   which file of the base has which weight; a copy of such a file, tensor by tensor
"""
