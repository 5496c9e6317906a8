"""Adapters merged into a base on disk (docs/merging.md).

    command             what scripts/merge.py does
    sources             what an adapter file changes, layer by layer
    into_base           the base written anew with the changes
    checkpoint stream   which file of the base has which weight; a copy of such a file, tensor by tensor
"""
