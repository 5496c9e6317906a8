"""Classifiers that judge sample pictures: whether they show the subject of their prompt, and in which style."""
