"""python -m tvmcnn"""

from tvmcnn.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
