"""Runs and jobs, without widgets: what a run wrote, whether it lives, and the queue of those still to come."""
