"""The console script `cosmos-hydra` and `python -m cosmos_hydra`."""

from cosmos_hydra.signals import stop_at_once


def run() -> None:
    """Heed signals, then import the rest, which takes a while."""
    stop_at_once()
    from cosmos_hydra.main import main

    main()


if __name__ == "__main__":
    run()
