"""What adapter files mean, of any program and trainer: the first of four rooms, files < hosts < export < tools.

    opening writer patterns     a file as it is, who wrote it, peft's options in it
    keys kinds/ strangers       names and shapes of tensors; one kind of adapter, one file in kinds/; other files
    spellings layers_by_name models_by_name
                                from names to the part of a model, its layers, and the model
    reading change forms norms  a file on a model: what is done to each layer, and how programs see it
    rows                        a layer's weight in blocks of rows
    distance singular_values    the distance of two weights; the singular values of a change
    embeddings                  vectors of new tokens, in files of their own and inside of adapter files
    run_file facts start_from   a run's internal file and its metadata; a file as initial values of a training

What a program computes from a file, and so every quirk of ComfyUI, is in modules/hosts. May import families, adapters
and what those import; none of the other rooms.
"""
