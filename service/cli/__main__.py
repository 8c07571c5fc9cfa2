"""Starts the ``limelight`` command."""

import signal

from service.signals import end_by

INTERRUPTED = 128 + signal.SIGINT  # the exit code that Typer chooses after Ctrl-C in a command


def main() -> None:
    """Run the command that the arguments of the process name. After Ctrl-C the process ends by SIGINT."""
    try:
        from service.cli.app import main as run_command  # takes long enough for somebody to change their mind

        run_command()
    except KeyboardInterrupt:
        end_by(signal.SIGINT)
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            end_by(signal.SIGINT)
        raise


if __name__ == "__main__":
    main()
