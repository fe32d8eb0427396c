"""Hydra launchers; they know the task function and the files of its runs, no more."""
