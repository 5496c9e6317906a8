"""Modules that are not programs.

    arithmetic usual    shared arithmetic; default answers
    effect_of_file      a program's results for a whole file: the tensors it reads, the layers it does not find
    installed_comfyui comfyui_process       the user's ComfyUI, in a separate process
"""
