"""Runs and jobs: what a run wrote (tail, events, history), whether it lives (states, launch, library), and the queue of
those still to come (queue, jobs, devices).
"""
