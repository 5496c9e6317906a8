"""What adapter files mean, of any program and trainer: the first of four rooms, files < hosts < export < tools.

    opening writer patterns     a file as it is, who wrote it, peft's options in it
    keys kinds/ strangers       names and shapes of tensors; one kind of adapter, one file in kinds/; what is no adapter
    spellings layers_by_name models_by_name
                                what a name tells: the part of a model, its layers, which model it is
    reading change forms norms  a file on a model: what is done to each layer, and how programs see it
    rows                        a layer's weight in blocks of rows
    distance                    how far one weight is from another
    run_file facts start_from   a run's own file and what it tells of the run; a file as first values of a training

What a program makes of a file, and so every quirk of ComfyUI, is in modules/hosts. May import families, adapters and
what those import; none of the other rooms.
"""
