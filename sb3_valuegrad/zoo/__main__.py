"""``python -m sb3_valuegrad.zoo`` is ``sb3-valuegrad``."""

from sb3_valuegrad.zoo.cli import main

if __name__ == "__main__":
    main()
