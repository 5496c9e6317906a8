"""A page of settings: form_page has a row for each option; what a value is edited with is in inputs, lists, table and
paths. noise_chart: a histogram on the page of the objective.
"""
