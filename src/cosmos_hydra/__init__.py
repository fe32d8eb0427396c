"""Post-train NVIDIA Cosmos-1.0-Diffusion world models from one Hydra command."""

__version__ = "0.1.0"
