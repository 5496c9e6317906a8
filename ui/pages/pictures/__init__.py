"""pictures_page, whose widgets stand in layout: folders_bar (folder_dialog: settings of one), grid of thumbnails over a
data_set, panel of the chosen picture with its preview, captions, draws and prompts, bucket_bars, notes.
"""
