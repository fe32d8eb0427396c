"""The console script `cosmos-hydra` and `python -m cosmos_hydra`."""

from cosmos_hydra.signals import ending_when_interrupted, ignore_all, stop_at_once


def run() -> None:
    """Heed signals, then import the rest, which takes a while."""
    stop_at_once()
    try:
        with ending_when_interrupted():
            from cosmos_hydra.main import main
            from cosmos_hydra.place import adopt_slurm

            adopt_slurm()
            main()
    finally:
        ignore_all()


if __name__ == "__main__":
    run()
