"""The config groups of cosmos-hydra; add to them with `--config-dir` or `hydra.searchpath`."""
