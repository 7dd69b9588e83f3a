"""``python -m utils.scaffold``: see `utils.export.scaffold`."""

from utils.export.scaffold import main

if __name__ == "__main__":
    main()
