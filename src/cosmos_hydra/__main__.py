"""`python -m cosmos_hydra` is the console script `cosmos-hydra`."""

from cosmos_hydra.main import main

if __name__ == "__main__":
    main()
