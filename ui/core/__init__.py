"""What the window knows, without widgets.

preset/ is the edited preset; runs/ are jobs and runs. check and look ask the trainer, each a program of
its own. settings and unsaved are kept on
disk; reading reads any file safely; places, words and workers are for everybody.
"""
