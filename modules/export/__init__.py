"""Writing files: the third of four rooms, files < hosts < export < tools.

    export              write, read back, compare with what was trained
    choosing encodings  the smallest form that the program computes exactly, and all forms that there are
    fuse                fused layers
    proof               the written file, read back, has the trained effect
    partly              what is lost in one of several programs that a file is for
    rounding            rounding errors in 16 bits, and the dtype that a file is written for
    metadata report     what is written into the file, and on screen
    token_files         what new tokens have learned, inside of the file and as files of their own
    read_back           the written file's tensors, all accounted for

Forms that ComfyUI reads wrong are not listed here: modules/hosts/comfyui.py computes what ComfyUI computes, and
`choosing` sees it. May import modules/files and modules/hosts, never modules/tools.
"""
