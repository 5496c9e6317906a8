"""What is no program itself.

    arithmetic usual    what several programs compute alike; what most answer
    effect_of_file      what a program makes of a whole file: the tensors it sees, the layers it does not find
    installed_comfyui comfyui_process       the user's own ComfyUI, in a process of its own
"""
