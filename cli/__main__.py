"""Where the command ``fastadam`` starts; ``python -m fastadam_cli`` is the same.

Nothing is imported at the top, so that Ctrl-C while the modules load is an interruption, not a traceback.
"""


def main() -> None:
    """Run the command and end the process with its exit code."""
    try:
        from .main import main as command

        command(prog_name="fastadam")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
