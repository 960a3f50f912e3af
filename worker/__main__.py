"""The command `darkroom`, also as `python -m worker`."""

from worker.cli.main import app
from worker.cli.terminal import hold_streams


def main() -> None:
    hold_streams()
    app()


if __name__ == "__main__":
    main()
