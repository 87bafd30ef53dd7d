"""python -m liveavatar.doctor."""

import sys

from liveavatar.doctor import main

if __name__ == "__main__":
    sys.exit(main())
