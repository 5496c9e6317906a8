"""What scripts/ offer on files: the last of four rooms, files < hosts < export < tools.

    convert resize      a file for another program, or at a smaller rank
    inspect_file        what a file is and who loads it, without its base
    verify              what a program does with a file, layer by layer
    apply               a file put into a model in memory
    merge/              files merged into a base on disk
    base_of_file        the base that a file is for, found and loaded

May import all of the other rooms. Nothing else in modules/ imports this one.
"""
