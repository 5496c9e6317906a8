"""What scripts/ do with files: the last of four rooms, files < hosts < export < tools.

    convert resize      a file for another program, or at a smaller rank
    inspect_file        what a file contains and which programs load it, without its base
    spectrum            size and directions of the changes, and of two files stacked
    verify              what a program computes from a file, layer by layer
    apply               a file merged into a model in memory
    merge/              files merged into a base on disk
    base_of_file        finds and loads the base that a file is for

May import all of the other rooms. Nothing else in modules/ imports this one.
"""
