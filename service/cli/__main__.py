"""Starts the ``limelight`` command."""

import sys

INTERRUPTED = 130  # as after Ctrl-C in a command


def main() -> None:
    """Run the command that the arguments of the process name."""
    try:
        from service.cli.app import main as run_command
    except KeyboardInterrupt:  # importing takes long enough for somebody to change their mind
        sys.exit(INTERRUPTED)
    run_command()


if __name__ == "__main__":
    main()
