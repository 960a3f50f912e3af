"""The command `darkroom`, also as `python -m worker`."""

from worker.cli.main import app


def main() -> None:
    app()


if __name__ == "__main__":
    main()
