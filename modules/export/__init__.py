"""How we write files: the third of four rooms, files < hosts < export < tools.

    export              write, read back, compare with what was trained
    choosing encodings  the smallest form that the program computes exactly, and all forms that there are
    fuse                layers that a program's files have as one
    proof               the written file, read back, does what is meant
    partly              what is lost in a program that cannot hold all of a file for several
    rounding            what 16 bits do to a file, in which numbers it is written for
    metadata report     what is told in the file, and on screen
    read_back           the written file's tensors, with nothing left over

A form that ComfyUI reads wrong is not forbidden here: modules/hosts/comfyui.py computes what ComfyUI computes, and
`choosing` sees it. May import modules/files and modules/hosts, never modules/tools.
"""
