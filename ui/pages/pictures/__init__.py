"""pictures_page, whose widgets stand in layout: folders_bar, grid of thumbnails over a data_set, panel of the chosen
picture with its captions and draws, bucket_bars, notes.
"""
