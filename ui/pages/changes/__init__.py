"""changes_page: what differs from the preset as opened, the defaults, another preset or a run."""
