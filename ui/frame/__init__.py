"""The window around the pages: window, its menus, navigation, search, banner and status_line; opening asks before edits
are lost.
"""
