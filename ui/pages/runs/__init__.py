"""runs_page: at its side the queue and all runs, each a row_list (with its state_icon); beside it the chosen run, live,
with controls (and tensorboard), curves_tab (plots with axis and readout), gallery (sample_table and before_after),
messages and log.
"""
