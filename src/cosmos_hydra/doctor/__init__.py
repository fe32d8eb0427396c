"""The checks of `stage=doctor`: what this machine, its packages and accounts allow.

A check is a function of the config that returns one Finding. It imports what it examines itself,
since any library may be missing or broken.
"""
